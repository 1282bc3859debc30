"""Trains a multimodal LLM on LLaVA rows: python -m mllm.train mllm/recipes/tiny_align.yaml [key=value ...]

Stage 1 (`trainable: [connector]`), stage 2 (`trainable: [connector, llm, head]`) and stage 2 by adapters (`lora`) are
recipes. `init_from` is a folder of mllm.assemble or of an earlier stage; the result in `output_dir` is another such
folder, in the same dtype, and its config names the conversation template. With `lora` it holds the adapters and the
connector, and python -m mllm.merge makes such a folder of it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import ADAPTER_CONFIG_NAME

import encoder  # noqa: F401  registers the vision tower with the Auto classes
from encoder.lineage import read_parents, start_training, weights_hash
from mllm.conversation import TEMPLATES
from mllm.data import ON_ERROR, ConversationCollator, Conversations, cache_image_tokens, load_rows, without_pictures
from mllm.lora import add_lora, four_bits, save_adapter
from mllm.objective import MultimodalObjective, tower_tokens
from mllm.sampler import GroupedSampler, row_lengths
from training.arguments import training_arguments, uses_deepspeed
from training.cli import run_cli
from training.recipes import REQUIRED, Recipe, load_recipe
from training.trainer import run_training
from training.zero import models_made_whole


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
    group_by_modality_length: bool = field(
        default=False, metadata={"help": "batches of rows with pictures or rows without, and of like length"}
    )
    cache_tokens: bool = field(
        default=False, metadata={"help": "run the frozen tower once on every picture and keep its tokens in memory"}
    )
    on_error: str = field(
        default="stop",
        metadata={
            "help": "a row that cannot be trained on: stop, or skip, when the next one stands in for it; python -m "
            "mllm.inspect_data tells such rows beforehand"
        },
    )
    lora: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "keyword arguments of peft.LoraConfig: adapters on the LLM's linear layers learn, and the whole "
            "connector; empty: no adapters"
        },
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: the LLM under the adapters is held in NF4 by bitsandbytes"}
    )


def check(recipe: MultimodalRecipe) -> None:
    """Refuses what cannot be trained.

    Raises:
        ValueError: no folder to start from, or settings that contradict each other.
    """
    if recipe.init_from is None or not (Path(recipe.init_from) / "config.json").is_file():
        raise ValueError(f"init_from is {recipe.init_from!r}; name a folder made by python -m mllm.assemble.")
    if (Path(recipe.init_from) / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"init_from is {recipe.init_from!r}, which holds adapters; python -m mllm.merge comes first.")
    if (kind := AutoConfig.from_pretrained(recipe.init_from).model_type) != "llava":
        raise ValueError(f"init_from is {recipe.init_from!r}, a {kind}; give a folder assembled without --anyres.")
    if recipe.template not in TEMPLATES:
        raise ValueError(f"template is {recipe.template!r}; choose one of {', '.join(TEMPLATES)}.")
    if recipe.on_error not in ON_ERROR:
        raise ValueError(f"on_error is {recipe.on_error!r}; choose one of {', '.join(ON_ERROR)}.")
    if recipe.lora and recipe.trainable:
        raise ValueError("With lora the adapters and the connector learn: leave trainable empty.")
    if recipe.load_in_4bit and not recipe.lora:
        raise ValueError("load_in_4bit: weights in four bits cannot learn; set lora too.")


def load_model(recipe: MultimodalRecipe, arguments: TrainingArguments) -> LlavaForConditionalGeneration:
    """The model of `init_from`, tower frozen.

    It has the folder's dtype, and the trainer makes of it what learns float32; a CPU computes in float32 alone at full
    speed. DeepSpeed wants all of one dtype and keeps float32 copies of what learns: with bf16 it rounds a float32
    folder's LLM even where that is frozen. The tower keeps the folder's dtype in any case.

    Raises:
        ValueError: ZeRO-3 is to split an LLM in four bits.
    """
    in_parts = is_deepspeed_zero3_enabled()
    if recipe.load_in_4bit and in_parts:
        raise ValueError("load_in_4bit: ZeRO-3 cannot split weights in four bits; use ZeRO-2, or no DeepSpeed.")
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    # Straight to its device, so that the processes of a machine hold no copies in its main memory.
    options: dict[str, Any] = {"dtype": dtype} if in_parts else {"device_map": {"": arguments.device}}
    if recipe.load_in_4bit:
        options["quantization_config"] = four_bits(dtype)
    model = LlavaForConditionalGeneration.from_pretrained(recipe.init_from, **options)
    if in_parts:  # no one would gather the parts of the tower, which is outside of what DeepSpeed sees
        with models_made_whole():
            whole = LlavaForConditionalGeneration.from_pretrained(recipe.init_from)
        model.model.vision_tower = whole.model.vision_tower
        # ZeRO-3's loader notes renamings that did not take place, which save_pretrained would undo.
        model._weight_conversions = whole._weight_conversions
    elif uses_deepspeed(arguments) or arguments.device.type == "cpu":
        for part in (model.model.multi_modal_projector, model.model.language_model, model.lm_head):
            for value in part.parameters():
                value.data = value.data.to(dtype) if value.is_floating_point() else value.data
    model.config.conversation_template = recipe.template  # what ChatModel will speak
    model.model.vision_tower.requires_grad_(False).eval()
    return model


def main(argv: list[str]) -> None:
    recipe = load_recipe(MultimodalRecipe, argv)
    torch.manual_seed(recipe.trainer.get("seed", 42))
    check(recipe)
    arguments = training_arguments(recipe)  # before the model, which ZeRO-3 makes in parts
    rows = load_rows(recipe.data)
    if recipe.blind:
        rows = without_pictures(rows)
    model = load_model(recipe, arguments)
    adapter = add_lora(model, recipe.lora) if recipe.lora else None
    processor = AutoProcessor.from_pretrained(recipe.init_from)
    parents = {**read_parents(recipe.init_from), "init_from": weights_hash(recipe.init_from)}
    tower = tower_tokens(model)

    def to_pixels(pictures: list[Image.Image]) -> Tensor:
        return processor.image_processor(pictures, return_tensors="pt")["pixel_values"]

    tokens = None
    vision, num_image_tokens = model.config.vision_config, model.config.image_seq_length
    dummy_shape = (3, vision.image_size, vision.image_size)
    if recipe.cache_tokens:
        tokens = cache_image_tokens(
            rows,
            recipe.images,
            lambda pictures: tower(to_pixels(pictures).to(arguments.device)),
            on_error=recipe.on_error,
        )
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
        on_error=recipe.on_error,
    )

    def grouped(world_size: int) -> GroupedSampler:
        group_size = world_size * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        return GroupedSampler(row_lengths(rows, num_image_tokens), group_size, arguments.seed)

    def export(folder: Path) -> None:
        if adapter is not None:
            return save_adapter(adapter, processor, folder)
        dtype = AutoConfig.from_pretrained(recipe.init_from).dtype
        for value in model.parameters():
            value.data = value.data.to(dtype)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    run_training(
        MultimodalObjective(model, cached=recipe.cache_tokens),
        dataset,
        recipe,
        collate=ConversationCollator(processor.tokenizer.pad_token_id, dummy_shape),
        start=lambda: start_training(recipe.output_dir, parents),
        export=export,
        sampler=grouped if recipe.group_by_modality_length else None,
    )


if __name__ == "__main__":
    run_cli(main)
