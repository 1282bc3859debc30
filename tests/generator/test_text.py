"""Text encoders of others: a causal LLM, as text_to_image_256.yaml takes it; its tokenizer marks neither end."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from generator.pipeline import load_pipeline
from generator.text import encode_texts
from generator.train import main as train

WORDS = ["<|endoftext|>", "a", "red", "circle", "blue", "square", "left", "other"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder as those on the Hub: a language model in bfloat16 beside its tokenizer."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="other"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|endoftext|>", unk_token="other", model_max_length=131072
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("cache_gb", [1, 0])
def test_a_generator_learns_and_draws_from_its_states(files, qwen, tmp_path, cache_gb):
    train([str(files / "recipe.yaml"), f"text_encoder={qwen}", f"output_dir={tmp_path}", f"cache_gb={cache_gb}",
           "drop=0.5", "trainer.max_steps=1", "max_text_tokens=3"])  # fmt: skip
    pipeline = load_pipeline(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.text_encoder).__name__ == "Qwen3Model"
    assert pipeline.transformer.config.text_hidden_size == 2 * 32
    drawn = pipeline(["a red circle", "a blue square left"], 2, output_type="latent").images
    assert torch.isfinite(drawn).all()


def test_the_empty_text_has_no_tokens_and_padding_changes_no_state(qwen):
    text_encoder, tokenizer = AutoModel.from_pretrained(qwen), AutoTokenizer.from_pretrained(qwen)
    states, mask = encode_texts(text_encoder, tokenizer, ["", "a red", "a red circle left"])
    assert mask.sum(1).tolist() == [0, 2, 4]
    alone, _ = encode_texts(text_encoder, tokenizer, ["a red"])
    assert torch.allclose(states[1, :2].float(), alone[0].float(), atol=0.02)
