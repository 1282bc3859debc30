"""Trains a multimodal LLM on LLaVA rows: python -m mllm.train mllm/recipes/tiny_align.yaml [key=value ...]

Stage 1 (`trainable: [connector]`) and stage 2 (`trainable: [connector, llm, head]`) are recipes. `init_from` is a
folder of mllm.assemble or of an earlier stage; the result in `output_dir` is another such folder, and its config names
the conversation template.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

import encoder  # noqa: F401  registers the vision tower with the Auto classes
from encoder.lineage import read_parents, start_training, weights_hash
from mllm.conversation import TEMPLATES
from mllm.data import ConversationCollator, Conversations, cache_image_tokens, load_rows, without_pictures
from mllm.objective import MultimodalObjective, tower_tokens
from training.cli import run_cli
from training.recipes import REQUIRED, Recipe, load_recipe
from training.trainer import run_training


@dataclass
class MultimodalRecipe(Recipe):
    """Connector alignment or visual instruction tuning on LLaVA rows."""

    data: str = field(default=REQUIRED, metadata={"help": "LLaVA .json or .jsonl file"})
    images: str = field(default=REQUIRED, metadata={"help": "folder the rows' picture paths are relative to"})
    template: str = field(default="chat", metadata={"help": f"one of {', '.join(TEMPLATES)}"})
    max_length: int = field(default=2048, metadata={"help": "longer rows lose whole trailing exchanges"})
    blind: bool = field(
        default=False, metadata={"help": "drop the pictures: a baseline that can only guess (mllm.evaluate --blind)"}
    )
    cache_tokens: bool = field(
        default=False, metadata={"help": "run the frozen tower once on every picture and keep its tokens in memory"}
    )


def main(argv: list[str]) -> None:
    recipe = load_recipe(MultimodalRecipe, argv)
    torch.manual_seed(recipe.trainer.get("seed", 42))
    if recipe.init_from is None or not (Path(recipe.init_from) / "config.json").is_file():
        raise ValueError(f"init_from is {recipe.init_from!r}; name a folder made by python -m mllm.assemble.")
    rows = load_rows(recipe.data)
    if recipe.blind:
        rows = without_pictures(rows)
    model = LlavaForConditionalGeneration.from_pretrained(recipe.init_from)
    processor = AutoProcessor.from_pretrained(recipe.init_from)
    parents = {**read_parents(recipe.init_from), "init_from": weights_hash(recipe.init_from)}
    model.config.conversation_template = recipe.template  # what ChatModel will speak
    model.model.vision_tower.requires_grad_(False).eval()
    tower = tower_tokens(model)

    def to_pixels(pictures: list[Image.Image]) -> Tensor:
        return processor.image_processor(pictures, return_tensors="pt")["pixel_values"]

    tokens = None
    vision, num_image_tokens = model.config.vision_config, model.config.image_seq_length
    dummy_shape = (3, vision.image_size, vision.image_size)
    if recipe.cache_tokens:
        tokens = cache_image_tokens(rows, recipe.images, lambda pictures: tower(to_pixels(pictures)))
        dummy_shape = (num_image_tokens, vision.hidden_size)
    dataset = Conversations(
        rows,
        processor.tokenizer,
        template=recipe.template,
        num_image_tokens=num_image_tokens,
        max_length=recipe.max_length,
        root=recipe.images,
        tokens=tokens,
        to_pixels=to_pixels,
    )

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    if not recipe.dry_run:
        start_training(recipe.output_dir, parents)
    run_training(
        MultimodalObjective(model, cached=recipe.cache_tokens),
        dataset,
        recipe,
        collate=ConversationCollator(processor.tokenizer.pad_token_id, dummy_shape),
        export=export,
    )


if __name__ == "__main__":
    run_cli(main)
