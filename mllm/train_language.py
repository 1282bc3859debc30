"""Trains a small causal LLM on text: python -m mllm.train_language mllm/recipes/tiny_language.yaml [key=value ...]

The corpus is a text file, one sentence a line. The result is an ordinary LlamaForCausalLM folder with its tokenizer.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from encoder.tokenizer import load_tokenizer, tokenize_captions
from mllm.conversation import IGNORED
from mllm.objective import LanguageObjective
from training.cli import run_cli
from training.recipes import REQUIRED, Recipe, load_recipe
from training.trainer import run_training


@dataclass
class LanguageRecipe(Recipe):
    """A Llama from scratch on a text corpus."""

    corpus: str = field(default=REQUIRED, metadata={"help": "text file, one sentence a line"})
    tokenizer: str = field(default=REQUIRED, metadata={"help": "tokenizer folder"})
    llama: dict[str, Any] = field(default_factory=dict, metadata={"help": "keyword arguments of LlamaConfig"})
    max_length: int = field(default=128, metadata={"help": "longer lines are cut to so many tokens"})


class Lines(Dataset):
    """The lines of a text file that hold more than space. Items are {"text", "key"}.

    Raises:
        ValueError: there is no such file, or it holds no text.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise ValueError(f"There is no corpus at {path}; give a text file with one sentence a line.")
        lines = enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1)
        self.lines = [(number, line) for number, line in lines if line.strip()]
        if not self.lines:
            raise ValueError(f"The corpus {path} holds no text; give a text file with one sentence a line.")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict:
        number, line = self.lines[index]
        return {"text": line, "key": f"line {number}"}


def main(argv: list[str]) -> None:
    recipe = load_recipe(LanguageRecipe, argv)
    if recipe.init_from is not None:
        raise ValueError("init_from: this training starts a new Llama and reads none; leave init_from out.")
    torch.manual_seed(recipe.trainer.get("seed", 42))
    tokenizer = load_tokenizer(recipe.tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **recipe.llama,
        )
    )

    def collate(samples: list[dict]) -> dict:
        input_ids, mask = tokenize_captions(tokenizer, [row["text"] for row in samples], recipe.max_length)
        return {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill(mask == 0, IGNORED),
            "attention_mask": mask,
            "keys": [row["key"] for row in samples],
        }

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    run_training(
        LanguageObjective(model.model, model.lm_head), Lines(recipe.corpus), recipe, collate=collate, export=export
    )


if __name__ == "__main__":
    run_cli(main)
