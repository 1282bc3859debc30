"""What DeepSpeed needs beside its JSON file: parameters that ZeRO-3 has split, and checkpoints without frozen ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers.integrations.deepspeed as integration
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def _whole(value: nn.Parameter) -> Tensor:
    """The whole of a parameter, which all processes must ask for together."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([value]):
        return value.detach().clone()


@contextmanager
def models_made_whole() -> Iterator[None]:
    """Within it transformers makes models whole, in any dtype, though ZeRO-3 is on.

    For what is used outside the trained module, where no one gathers the parts.
    """
    kept = integration._hf_deepspeed_config_weak_ref  # set_hf_deepspeed_config wants the object, which we may not have
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = kept


def gather_in_first_process(module: nn.Module, first: bool) -> None:
    """Gives the first process all of what ZeRO-3 has split, on the CPU, to save it; nothing to do without ZeRO-3.

    Afterwards the module can be trained no further.
    """
    if not is_deepspeed_zero3_enabled():
        return
    for value in module.parameters():
        whole = _whole(value)
        if first:
            value.data = whole.cpu()


@torch.no_grad()
def copy_into(parameter: nn.Parameter, value: Tensor) -> None:
    """Sets a parameter, split by ZeRO-3 or not, to a value of its whole shape, which all processes bring."""
    if not is_deepspeed_zero3_enabled():
        parameter.copy_(value)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(value)


def save_without_frozen(engine: nn.Module) -> None:
    """Makes a DeepSpeed engine leave frozen parameters out of its checkpoints."""
    engine.save_checkpoint = partial(type(engine).save_checkpoint, engine, exclude_frozen_parameters=True)


def load_without_frozen(module: nn.Module) -> None:
    """Lets a module read a state without its frozen parameters, which keep their values."""
    frozen = {name for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}

    def forgive(module: nn.Module, incompatible: Any) -> None:
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in frozen]

    module.register_load_state_dict_post_hook(forgive)
