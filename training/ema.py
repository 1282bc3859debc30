"""An exponential moving average of the trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages of a module's trainable parameters, `decay = 0.5 ** (1 / half_life)` per step.

    The averages stay on the device that the module is on when this is made.

    A half-life in steps says what it means without arithmetic: RAE's decay of 0.9995 is a half-life of 1,386 steps.
    """

    def __init__(self, module: nn.Module, half_life: float) -> None:
        self.decay = 0.5 ** (1.0 / half_life)
        self.parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.averages = {name: value.detach().float().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        averages = list(self.averages.values())
        torch._foreach_lerp_(averages, [value.float() for value in self.parameters.values()], 1.0 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.averages)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.averages.keys():
            odd = sorted(state.keys() ^ self.averages.keys())[0]
            raise ValueError(f"The averaged weights do not belong to this model: {odd!r} is on one side only.")
        for name, value in state.items():
            self.averages[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the module's parameters hold the averages."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        try:
            self._write(self.averages)
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
