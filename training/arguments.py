"""A recipe as transformers reads it: its `trainer` block as TrainingArguments, and the rate of Muon's half."""

import os
import socket

import torch
from transformers import TrainingArguments

from training.recipes import Recipe

OPTIMIZERS = ("adamw", "muon")


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's `trainer` block as TrainingArguments, with what every run here needs set."""
    fixed = {"output_dir": recipe.output_dir, "remove_unused_columns": False, "logging_nan_inf_filter": False}
    for key in fixed.keys() & recipe.trainer.keys():
        raise ValueError(f"trainer.{key} is set by the trainer itself; remove it from the recipe.")
    settings = {
        "report_to": "none",
        "logging_steps": 10,
        "save_strategy": "steps",
        "save_steps": 200,
        "save_total_limit": 1,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **recipe.trainer,
        **fixed,
    }
    if settings.get("deepspeed") and "RANK" not in os.environ:
        # DeepSpeed started without a launcher looks for MPI; one process needs none.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    try:
        return TrainingArguments(**settings)
    except TypeError as error:
        raise ValueError(f"The trainer block of the recipe is not accepted: {error}.") from error


def muon_learning_rate(recipe: Recipe, arguments: TrainingArguments) -> float | None:
    """The rate of Muon's half, or None with AdamW alone.

    Raises:
        ValueError: there is no such optimizer, or DeepSpeed or FSDP splits the matrices that Muon needs whole.
    """
    if recipe.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {recipe.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}.")
    if recipe.optimizer == "adamw":
        return None
    if recipe.learning_rates:
        raise ValueError("learning_rates are AdamW's: use optimizer=adamw with them.")
    if arguments.deepspeed or arguments.fsdp:
        splitter = "DeepSpeed" if arguments.deepspeed else "FSDP"
        raise ValueError(f"optimizer=muon needs whole matrices, which {splitter} splits: use optimizer=adamw with it.")
    return recipe.muon_learning_rate
