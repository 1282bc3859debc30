"""The one tokenizer of a family: sentencepiece, read by text towers and LLM alike."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

IMAGE_TOKEN = "<image>"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

# Turns are <|user|>question<|end|><|assistant|>answer<|end|>; what lies between the generation marks is trained on.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}{% else %}"
    "{% set ns = namespace(text='') %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set ns.text = ns.text + '<image>' %}"
    "{% else %}{% set ns.text = ns.text + part['text'] %}{% endif %}{% endfor %}{% set text = ns.text %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ text }}<|end|>{% endgeneration %}"
    "{% else %}<|user|>{{ text }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(sentencepiece_model: str | Path) -> PreTrainedTokenizerBase:
    """A transformers tokenizer from a sentencepiece model file: bos and eos around a text, chat markers, image token.

    pad 0, bos 1, eos 2 and unk 3 must be the model's (encoder.train_tokenizer makes it so).
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(sentencepiece_model, Path(folder) / "tokenizer.model")
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "pad_token": "<pad>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": True,
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
        }
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN, USER, ASSISTANT, END]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Reads a tokenizer folder.

    Raises:
        ValueError: there is no tokenizer in the folder.
    """
    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise ValueError(f"There is no tokenizer at {folder}; train one with python -m encoder.train_tokenizer.")
    return AutoTokenizer.from_pretrained(folder)


def text_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What a text tower must know of its tokenizer: vocab_size, and the ids of beginning, end and padding.

    Beginning and end are what the tokenizer itself puts around a text: <s> and </s>, or BERT's [CLS] and [SEP].

    Raises:
        ValueError: it puts anything else than one token before and one after a text, or has no padding token.
    """
    around = tokenizer("", add_special_tokens=True)["input_ids"]
    if len(around) != 2 or tokenizer.pad_token_id is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path} puts {len(around)} tokens around a text and its padding token is "
            f"{tokenizer.pad_token}; captions need one before, one after and padding: set add_bos_token, add_eos_token "
            "and pad_token."
        )
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": around[0],
        "eos_token_id": around[1],
        "pad_token_id": tokenizer.pad_token_id,
    }


def tokenize_captions(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask [batch, longest]: bos, words, eos, padding on the right; longer texts are cut."""
    rows = tokenizer(texts, add_special_tokens=True)["input_ids"]
    rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return input_ids, (torch.arange(longest) < lengths[:, None]).long()
