"""What a recipe does to an objective before it learns: freezing, and activations recomputed instead of kept."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

# What the reference calls kernels (Flax's name). Conv1D is GPT-2's linear layer.
KERNELS = (nn.Linear, nn.modules.conv._ConvNd, Conv1D)
# Kernels that a released layout stores as bare parameters: the head after the encoder's pooling.
BARE_KERNELS = ("proj",)


def set_trainable(objective: nn.Module, prefixes: list[str]) -> None:
    """Freezes everything but the parameters that start with one of `prefixes`; an empty list changes nothing.

    A parameter with two names, as a head that is tied to the embeddings, is trained if one of them is meant.
    """
    if not prefixes:
        return
    named = list(objective.named_parameters(remove_duplicate=False))
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name, _ in named):
            groups = ", ".join(sorted({name.split(".")[0] for name, _ in named}))
            raise ValueError(f"trainable: no parameter starts with {prefix!r}; the modules are {groups}.")
    objective.requires_grad_(False)
    for name, value in named:
        if name.startswith(tuple(prefixes)):
            value.requires_grad_(True)


def kernel_names(module: nn.Module) -> list[str]:
    """Names of the parameters that weight decay applies to, as in the reference: kernels and nothing else.

    Embeddings, positions, class tokens, gains, biases and temperatures do not decay; an embedding that is also the head
    (tied) is an embedding.
    """
    kernels = {f"{name}.weight".lstrip(".") for name, layer in module.named_modules() if isinstance(layer, KERNELS)}
    return [
        name
        for name, _ in module.named_parameters()
        if name in kernels or name.rpartition(".")[2] in BARE_KERNELS
    ]


def enable_checkpointing(objective: nn.Module, settings: dict[str, Any] | None) -> None:
    """Lets those parts of the objective that can, models of transformers and diffusers, recompute their activations.

    Args:
        settings: trainer.activation_checkpointing_kwargs, for transformers' models.

    Raises:
        ValueError: no part can.
    """
    found = False
    for part in objective.children():
        if hasattr(part, "activation_checkpointing_enable"):
            part.activation_checkpointing_enable(settings)
            found = True
        elif hasattr(part, "enable_gradient_checkpointing"):
            part.enable_gradient_checkpointing()
            found = True
    if not found:
        raise ValueError(
            f"trainer.activation_checkpointing: no part of {type(objective).__name__} can recompute its activations; "
            "leave it out."
        )


def learn_in_float32(objective: nn.Module) -> None:
    """Makes what learns float32: bfloat16 has 8 bits, and AdamW's small steps would be rounded away."""
    for value in objective.parameters():
        if value.requires_grad:
            value.data = value.data.float()
