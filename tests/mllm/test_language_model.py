"""Published families as tiny random LLMs: what is kept of them inside a multimodal model, and which are refused."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from mllm import ChatModel
from mllm.assemble import assemble
from mllm.conversation import encode_conversation, image_placeholder, image_token
from mllm.objective import MultimodalObjective
from training.modules import set_trainable

VOCABULARY = 64
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
# name: model type, what differs from SMALL, special tokens at the end of the vocabulary, the picture's token, dtype
WORKS = {
    "llama with a full vocabulary": ("llama", {}, [], "<image>", torch.float32),
    "smollm, tied, with a full vocabulary": ("llama", {"tie_word_embeddings": True}, [], "<image>", torch.float32),
    "room in the embeddings": ("llama", {"vocab_size": 80}, [], "<image>", torch.float32),
    "float16, as vicuna": ("llama", {}, ["<|eot_id|>"], "<image>", torch.float16),
    "llama 3": (
        "llama",
        {"rope_theta": 5e5},
        ["<|eot_id|>", "<|reserved_special_token_0|>"],
        "<|reserved_special_token_0|>",
        torch.bfloat16,
    ),
    "qwen2, tied": (
        "qwen2",
        {"tie_word_embeddings": True},
        ["<|endoftext|>", "<|vision_pad|>", "<|image_pad|>"],
        "<|image_pad|>",
        torch.bfloat16,
    ),
    "qwen3": ("qwen3", {}, ["<|vision_pad|>"], "<|vision_pad|>", torch.bfloat16),
    "phi 3, with a pad token": ("phi3", {}, ["<pad>", "<|placeholder1|>"], "<|placeholder1|>", torch.bfloat16),
    "mistral": ("mistral", {}, ["[control_8]"], "[control_8]", torch.float32),
    "gemma, tied": ("gemma", {"tie_word_embeddings": True}, ["<unused0>"], "<unused0>", torch.float32),
    "gemma 3, tied": ("gemma3_text", {"tie_word_embeddings": True}, [], "<image>", torch.bfloat16),
    "olmo 2": ("olmo2", {}, [], "<image>", torch.float32),
}
REFUSED = {
    "gemma 2 caps its logits": ("gemma2", {}, "differ"),
    "cohere scales its logits": ("cohere", {"logit_scale": 0.0625}, "differ"),
    "granite scales its logits": ("granite", {"logits_scaling": 8.0}, "differ"),
    "phi has a bias": ("phi", {}, "bias"),
    "mamba keeps no keys and values": ("mamba", {}, "outputs"),
    "gpt2 names its embeddings otherwise": ("gpt2", {"tie_word_embeddings": True}, "unlike Llama"),
}


def save_llm(folder, model_type, changes, extra=(), dtype=torch.float32, template=None):
    """A random LLM with words as tokens; returns its generation config."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # As Vicuna's, which transformers refuses to save once it was changed.
    settings = {"temperature": 0.9, "top_p": 0.6, "bos_token_id": 1, "eos_token_id": [2, 5], "max_length": 60}
    model.generation_config = GenerationConfig(**settings, do_sample=True)
    model.save_pretrained(folder)
    words = ["<unk>", "<s>", "</s>", *(f"w{index}" for index in range(VOCABULARY - 3 - len(extra)))]
    tokens = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token="</s>", extra_special_tokens=list(extra)
    )
    tokenizer.chat_template = template
    if "<pad>" in extra:
        tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == VOCABULARY
    return folder


@pytest.mark.parametrize("name", WORKS)
def test_a_published_llm_sees_and_stays_itself(family, tmp_path, name):
    model_type, changes, extra, placeholder, dtype = WORKS[name]
    llm = save_llm(tmp_path / "llm", model_type, changes, extra, dtype)
    own = AutoModelForCausalLM.from_pretrained(llm)
    model = assemble(family / "autoencoder", llm, tmp_path / "out")
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.dtype == loaded.dtype == dtype

    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        expected, logits, again = (part(input_ids=ids).logits.float() for part in (own, model, loaded))
    assert torch.allclose(expected, logits[..., : own.config.vocab_size], atol=0, rtol=4 * torch.finfo(dtype).eps)
    assert torch.equal(logits, again)

    before = AutoTokenizer.from_pretrained(llm)
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert tokenizer.decode([image_token(tokenizer)]) == image_placeholder(tokenizer) == placeholder
    assert len(tokenizer) == len(before) + (placeholder == "<image>")
    assert loaded.lm_head.out_features == max(own.config.vocab_size, len(tokenizer))
    assert loaded.config.image_token_id == image_token(tokenizer) < loaded.lm_head.out_features
    assert set(tokenizer.extra_special_tokens) >= set(extra)
    assert tokenizer.pad_token == (before.pad_token or "</s>")
    assert (tokenizer.pad_token == "<pad>") == ("<pad>" in extra)
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.temperature, generation.top_p) == ([2, 5], 0.9, 0.6)

    tied = changes.get("tie_word_embeddings", False)
    for part in (model, loaded):
        assert (part.lm_head.weight is part.get_input_embeddings().weight) == tied
    pictures = torch.randn(2, 3, 32, 32, dtype=dtype)
    row = torch.tensor([[1] + [image_token(tokenizer)] * 4 + [7, 8]])
    with torch.no_grad():
        seen = [loaded(input_ids=row, pixel_values=picture[None]).logits for picture in pictures]
    assert not torch.equal(*seen)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_would_answer_differently_is_refused_by_name(family, tmp_path, name):
    model_type, changes, reason = REFUSED[name]
    llm = save_llm(tmp_path / "llm", model_type, changes)
    with pytest.raises(ValueError, match=f"(?i){model_type}.*{reason}.*choose a Llama"):
        assemble(family / "autoencoder", llm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("loudness", [0.01, 1000.0])
def test_neither_small_nor_large_logits_hide_a_soft_cap_or_refuse_a_llama(family, tmp_path, loudness):
    for model_type in ("gemma2", "llama"):
        llm = save_llm(tmp_path / model_type, model_type, {})
        model = AutoModelForCausalLM.from_pretrained(llm)
        with torch.no_grad():
            model.lm_head.weight *= loudness / model(input_ids=torch.arange(3, 19)[None]).logits.abs().max()
        model.save_pretrained(llm)
    with pytest.raises(ValueError, match="Gemma2ForCausalLM.*differ"):
        assemble(family / "autoencoder", tmp_path / "gemma2", tmp_path / "out")
    assemble(family / "autoencoder", tmp_path / "llama", tmp_path / "out")


@pytest.mark.parametrize("trainable", [["connector", "llm"], ["connector", "llm", "head"], ["head"]])
def test_a_tied_head_is_trained_with_the_llm(family, tmp_path, trainable):
    llm = save_llm(tmp_path / "llm", "qwen2", {"tie_word_embeddings": True})
    assemble(family / "autoencoder", llm, tmp_path / "out")
    objective = MultimodalObjective(LlavaForConditionalGeneration.from_pretrained(tmp_path / "out"), cached=True)
    set_trainable(objective, trainable)
    ids = torch.arange(3, 12)[None]
    objective(ids, ids, torch.ones_like(ids), torch.zeros(1, 4, 32))["loss"].backward()
    # An id that is a target and no input: its gradient comes through the head alone.
    assert objective.head.weight.grad[11].any() and objective.llm.embed_tokens.weight.grad is objective.head.weight.grad
    groups = {name.split(".")[0] for name, value in objective.named_parameters() if value.requires_grad}
    assert groups == ({"llm"} if trainable == ["head"] else {"connector", "llm"})
    assert objective.llm.layers[0].mlp.up_proj.weight.requires_grad == ("llm" in trainable)


def test_a_spare_token_stands_for_the_picture_in_every_template(family, tmp_path):
    chat = "{% for m in messages %}{{ m.role }} {{ m.content }} {% generation %}</s>{% endgeneration %}{% endfor %}"
    llm = save_llm(tmp_path / "llm", "llama", {}, ["<|image_pad|>"], template=chat)
    assemble(family / "autoencoder", llm, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    place = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    turns = [{"from": "human", "value": "<image>\nw5"}, {"from": "gpt", "value": "w6"}]
    for template in ("chat", "plain", "vicuna_v1"):
        encoded = encode_conversation({"image": "a.png", "conversations": turns}, tokenizer, template, 4)
        assert encoded["input_ids"].count(place) == 4 and encoded["image_token_id"] == place


@pytest.mark.parametrize("mentioned", [True, False])
def test_a_spare_token_that_is_in_use_is_left_alone(family, tmp_path, mentioned):
    llm = save_llm(tmp_path / "llm", "llama", {}, ["<|image_pad|>", "<|vision_pad|>"])
    tokenizer = AutoTokenizer.from_pretrained(llm, pad_token="<|image_pad|>")
    tokenizer.chat_template = "<|vision_pad|>" if mentioned else None
    tokenizer.save_pretrained(llm)
    assemble(family / "autoencoder", llm, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token == "<|image_pad|>"
    assert image_placeholder(tokenizer) == ("<image>" if mentioned else "<|vision_pad|>")


def test_a_template_without_generation_marks_ends_at_the_llms_own_end_tokens(family, tmp_path):
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    assemble(family / "autoencoder", save_llm(tmp_path / "llm", "llama", {}, template=template), tmp_path / "out")
    assert ChatModel.from_pretrained(tmp_path / "out").end_ids == [2, 5]


@pytest.mark.parametrize("llm", ["nobody/no-such-llm", "/nowhere/llm"])
def test_an_llm_that_is_nowhere_is_named(family, tmp_path, llm):
    with pytest.raises(ValueError, match=f"There is no LLM at {llm}"):
        assemble(family / "autoencoder", llm, tmp_path / "out")


def test_a_folder_without_an_llm_is_named(family, tmp_path):
    with pytest.raises(ValueError, match="There is no LLM at .*a folder with a config.json"):
        assemble(family / "autoencoder", tmp_path, tmp_path / "out")
