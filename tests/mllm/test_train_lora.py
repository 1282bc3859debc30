"""LoRA trainings: what is adapted, what learns, what the merged folder answers."""

import json

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from mllm import ChatModel
from mllm.lora import add_lora
from mllm.merge import main as merge
from mllm.train import MultimodalRecipe, load_model
from mllm.train import main as train
from training.arguments import training_arguments
from training.recipes import load_recipe

LORA = "lora={r: 4, lora_alpha: 8, lora_dropout: 0.05}"
LINEAR = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


def _logits(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 300, (2, 12), generator=generator)
    ids[:, 2:6] = model.config.image_token_id
    pixel_values = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixel_values.to(model.dtype)).logits.float()


def test_the_llms_linear_layers_alone_are_adapted(family):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert any("vision_tower" in name for name in names) and "lm_head" in names  # which could be taken for the LLM's
    add_lora(model, {"r": 4})
    adapted = {
        name.removesuffix(".lora_A.default") for name, _ in model.named_modules() if name.endswith("lora_A.default")
    }
    assert adapted == {f"model.language_model.layers.0.{name}" for name in LINEAR}
    learning = {name.split(".layers.0.")[-1] for name, value in model.named_parameters() if value.requires_grad}
    adapters = {f"{name}.lora_{side}.default.weight" for name in LINEAR for side in "AB"}
    connector = {
        f"model.multi_modal_projector.modules_to_save.default.linear_{number}.{kind}"
        for number in (1, 2)
        for kind in ("weight", "bias")
    }
    assert learning == adapters | connector


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_folder_is_an_ordinary_one_with_the_adapters_answers(family, arguments, tmp_path, pictures, dtype):
    base = LlavaForConditionalGeneration.from_pretrained(family / "mllm", dtype=dtype)
    base.save_pretrained(tmp_path / "base")
    for file in (family / "mllm").glob("*token*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    for name in ("processor_config.json", "chat_template.jinja", "trained_on.json"):
        (tmp_path / "base" / name).write_bytes((family / "mllm" / name).read_bytes())
    train(arguments("lora", f"init_from={tmp_path / 'base'}", LORA, "template=vicuna_v1"))
    for name, value in load_file(tmp_path / "lora" / "checkpoint-4" / "model.safetensors").items():
        assert value.dtype == torch.float32 and ("lora_" in name or "connector.modules_to_save" in name), name
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    merge(["--model", str(tmp_path / "lora"), "--out", str(tmp_path / "merged")])
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert merged.dtype == dtype and not list((tmp_path / "merged").glob("adapter*"))
    before = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    assert (_logits(merged) - _logits(before)).abs().max() > 0.01
    assert (_logits(merged) - _logits(adapted)).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)
    model = ChatModel.from_pretrained(tmp_path / "merged", max_new_tokens=4)
    assert model.template == "vicuna_v1"
    assert isinstance(model.chat([{"role": "user", "content": "what color?"}], pictures[:1]), str)
    train(arguments("more", f"init_from={tmp_path / 'merged'}", "trainable=[connector]", "trainer.max_steps=1"))


def test_what_cannot_be_merged_or_trained_is_refused(family, arguments, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no adapter in .*name the output_dir of a recipe with lora"):
        merge(["--model", str(family / "mllm"), "--out", str(tmp_path / "merged")])
    with pytest.raises(ValueError, match="leave trainable empty"):
        train(arguments("lora", LORA, "trainable=[connector]"))
    with pytest.raises(ValueError, match="lora block of the recipe.*rank"):
        train(arguments("lora", "lora={rank: 4}"))
    with pytest.raises(ValueError, match="lora.modules_to_save is set by mllm.train itself"):
        train(arguments("lora", "lora={r: 4, modules_to_save: [lm_head]}"))
    with pytest.raises(ValueError, match="four bits cannot learn; set lora too"):
        train(arguments("lora", "load_in_4bit=true", "trainable=[connector]"))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="ZeRO-3 cannot split weights in four bits"):
        patch.setattr("mllm.train.is_deepspeed_zero3_enabled", lambda: True)
        train(arguments("lora", LORA, "load_in_4bit=true"))
    train(arguments("lora", LORA, "trainer.max_steps=1"))
    with pytest.raises(ValueError, match="holds adapters; python -m mllm.merge comes first"):
        train(arguments("more", f"init_from={tmp_path / 'lora'}"))
    with pytest.raises(ValueError, match="lora holds adapters; python -m mllm.merge makes a whole model of them"):
        ChatModel.from_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="template is 'llama_3'; choose one of .*vicuna_v1"):
        train(arguments("lora", "template=llama_3"))
    parents = tmp_path / "lora" / "trained_on.json"
    parents.write_text(json.dumps({**json.loads(parents.read_text()), "init_from": "0123"}))
    with pytest.raises(ValueError, match="adapts other weights than those in"):
        merge(["--model", str(tmp_path / "lora"), "--out", str(tmp_path / "merged")])
    assert not (tmp_path / "merged").exists()


def test_an_llm_in_four_bits_learns_by_adapters_that_merge_into_its_own_weights(family, arguments, tmp_path):
    command = arguments("qlora", LORA, "load_in_4bit=true", "trainer.activation_checkpointing=true")
    recipe = load_recipe(MultimodalRecipe, command)
    model = load_model(recipe, training_arguments(recipe))
    packed = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert packed == {f"model.language_model.layers.0.{name}" for name in LINEAR}
    train(command)
    adapter = load_file(tmp_path / "qlora" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)
    merge(["--model", str(tmp_path / "qlora"), "--out", str(tmp_path / "merged")])
    before = LlavaForConditionalGeneration.from_pretrained(family / "mllm").state_dict()
    after = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
    scale = 8 / 4
    for name in LINEAR:
        a, b = (adapter[f"base_model.model.model.language_model.layers.0.{name}.lora_{side}.weight"] for side in "AB")
        key = f"model.language_model.layers.0.{name}.weight"
        assert torch.allclose(after[key], before[key] + scale * b @ a, atol=1e-5), name
