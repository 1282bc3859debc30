"""Parts of a model that learn at a rate of their own."""

from torch import nn
from torch.optim import Optimizer


def set_learning_rates(optimizer: Optimizer, module: nn.Module, rates: dict[str, float]) -> None:
    """Moves the parameters whose names start with a key of `rates` into groups with that learning rate.

    Raises:
        ValueError: no parameter that learns starts with one of the keys.
    """
    names = {value: name for name, value in module.named_parameters()}
    for prefix, rate in rates.items():
        moved = []
        for group in list(optimizer.param_groups):
            chosen = [value for value in group["params"] if names[value].startswith(prefix)]
            if chosen:
                group["params"] = [value for value in group["params"] if not names[value].startswith(prefix)]
                moved.append({**group, "params": chosen, "lr": rate})
        if not moved:
            raise ValueError(f"learning_rates: no parameter that learns starts with {prefix!r}.")
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        for group in moved:
            optimizer.add_param_group(group)
