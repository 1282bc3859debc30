"""What decays, what is frozen, and what recomputes its activations."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from encoder import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.train import PreTrainingObjective
from encoder.vae import tiny_vae
from training.modules import enable_checkpointing, kernel_names, set_trainable

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, "position_table": True, **SMALL},
        decoder=dict(SMALL),
        text={"vocab_size": 20, "projection_dim": 32, **SMALL},
    )
    return PreTrainingObjective(OpenVision3ForPreTraining(config), tiny_vae().requires_grad_(False)).train()


def test_kernels_decay_and_nothing_else(objective):
    layers = ["attention.qkv", "attention.out", "fc1", "fc2"]
    towers = ["encoder", "latent_decoder", "text_encoder", "caption_decoder"]
    expected = {f"model.{tower}.layers.{n}.{layer}.weight" for tower in towers for n in (0, 1) for layer in layers}
    expected |= {"model.encoder.patch_embedding.weight", "model.encoder.proj", "model.text_encoder.proj.weight"}
    expected |= {"model.latent_decoder.embedding.weight", "model.latent_decoder.head.weight"}
    expected |= {"model.caption_decoder.image_projection.weight", "model.caption_decoder.head.weight"}
    assert set(kernel_names(objective)) == expected
    spared = {name for name, value in objective.named_parameters() if value.ndim > 1} - expected
    assert spared == {  # matrices that the old rule, by their number of axes, let decay
        "model.encoder.position_embedding",
        "model.text_encoder.token_embedding.weight",
        "model.text_encoder.position_embedding",
        "model.caption_decoder.token_embedding.weight",
        "model.caption_decoder.position_embedding",
    }


def test_an_embedding_that_is_also_the_head_does_not_decay():
    llama = dict(vocab_size=30, num_key_value_heads=2, **SMALL)
    tied, untied = (LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tie, **llama)) for tie in (True, False))
    assert "lm_head.weight" in kernel_names(untied)
    names = kernel_names(tied)
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in names) and len(names) == 2 * 7


def test_recomputed_activations_change_no_gradient(objective):
    plain, recomputed = copy.deepcopy(objective), copy.deepcopy(objective)
    enable_checkpointing(recomputed, None)
    torch.manual_seed(1)
    batch = {
        "latents": torch.randn(3, 16, 4, 4),
        "pixels": torch.zeros(3, 3, 32, 32, dtype=torch.uint8),
        "input_ids": torch.randint(3, 20, (3, 5)),
        "attention_mask": torch.ones(3, 5, dtype=torch.long),
    }
    calls, gradients = [], []
    for module in (plain, recomputed):
        counting = module.model.encoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(0))
        torch.manual_seed(2)
        module._steps = 1  # a step that does not measure the gradient of each term
        module(**batch)["loss"].backward()
        counting.remove()
        gradients.append({name: value.grad for name, value in module.named_parameters()})
    assert len(calls) == 1 + 2
    torch.testing.assert_close(gradients[0], gradients[1])


def test_where_nothing_can_be_recomputed_that_is_said():
    with pytest.raises(ValueError, match="trainer.activation_checkpointing: no part of Sequential"):
        enable_checkpointing(nn.Sequential(nn.Linear(2, 2)), None)


def test_only_what_is_named_learns_and_a_wrong_name_is_told_the_modules(objective):
    twin = copy.deepcopy(objective)
    set_trainable(twin, ["model.encoder", "model.log"])
    assert {name.split(".")[1] for name, value in twin.named_parameters() if value.requires_grad} == {
        "encoder",
        "log_scale",
    }
    with pytest.raises(ValueError, match="no parameter starts with 'encoder'; the modules are model"):
        set_trainable(twin, ["encoder"])
