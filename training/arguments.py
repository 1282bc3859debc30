"""A recipe as transformers reads it: its `trainer` block as TrainingArguments, and the rate of Muon's half."""

import os
import socket

import torch
from transformers import TrainingArguments

from training.recipes import Recipe

OPTIMIZERS = ("adamw", "muon")


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's `trainer` block as TrainingArguments, with what every run here needs set.

    Raises:
        ValueError: a key is unknown or set by the trainer itself, or one process would drive several GPUs.
    """
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
        arguments = TrainingArguments(**settings)
    except TypeError as error:
        raise ValueError(f"The trainer block of the recipe is not accepted: {error}.") from error
    if arguments.n_gpu > 1:
        raise ValueError(
            f"One process sees {arguments.n_gpu} GPUs, and DataParallel, which transformers would use, contrasts and "
            f"averages over parts of a batch: start with torchrun --nproc-per-node {arguments.n_gpu} -m ..., or with "
            "CUDA_VISIBLE_DEVICES=0."
        )
    return arguments


def uses_fsdp(arguments: TrainingArguments) -> bool:
    """Whether FSDP splits the parameters: by the recipe, or by `accelerate launch` through the environment."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def uses_deepspeed(arguments: TrainingArguments) -> bool:
    """The same of DeepSpeed, at any stage."""
    return bool(arguments.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


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
        raise ValueError("learning_rates are AdamW\'s: use optimizer=adamw with them.")
    if uses_deepspeed(arguments) or uses_fsdp(arguments):
        splitter = "DeepSpeed" if uses_deepspeed(arguments) else "FSDP"
        raise ValueError(f"optimizer=muon needs whole matrices, which {splitter} splits: use optimizer=adamw with it.")
    return recipe.muon_learning_rate
