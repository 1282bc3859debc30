"""A device that computes and is not the CPU, without having one: a tensor left behind on the CPU fails.

"meta" names that device: its tensors are wrapped CPU tensors that compute, and every operation that mixes them with
CPU tensors is refused, as a GPU's are.
"""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")


class Elsewhere(torch.Tensor):
    """A CPU tensor, `inner`, that says it is on the other device."""

    @staticmethod
    def __new__(cls, inner):
        options = {"dtype": inner.dtype, "strides": inner.stride(), "device": ELSEWHERE}
        tensor = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **options)
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return OtherDevice().__torch_dispatch__(func, types, args, kwargs)

    __torch_function__ = torch._C._disabled_torch_function_impl


class OtherDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if there and not copies and any(tensor.ndim and not isinstance(tensor, Elsewhere) for tensor in tensors):
            raise RuntimeError(f"{func} mixes tensors of the CPU and of another device")
        elsewhere = bool(there)
        if kwargs.get("device") is not None:
            elsewhere = torch.device(kwargs["device"]) == ELSEWHERE
            kwargs["device"] = torch.device("cpu")
        wrapped = {id(tensor.inner): tensor for tensor in there}
        args, kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
        out = func(*args, **kwargs)
        if not elsewhere:
            return out

        def moved(leaf):  # what an operation in place returns is the tensor it was given
            return wrapped.get(id(leaf), Elsewhere(leaf)) if isinstance(leaf, torch.Tensor) else leaf

        return tree_map(moved, out)


def there(value: Any) -> Any:
    """A tensor on the other device, everything else as it is; call it within OtherDevice."""
    return value.to(ELSEWHERE) if isinstance(value, torch.Tensor) else value


def assert_same_there(objective: nn.Module, batch: dict[str, Any], atol: float = 1e-6) -> None:
    """Loss and gradients of an objective are the same on both devices, and lie where its parameters do."""
    torch.manual_seed(3)
    here = objective(**batch)["loss"]
    here.backward()
    gradients = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}
    assert gradients
    with OtherDevice():
        objective.zero_grad()
        objective.to(ELSEWHERE)
        torch.manual_seed(3)
        loss = objective(**{name: there(value) for name, value in batch.items()})["loss"]
        loss.backward()
    assert loss.device == ELSEWHERE and torch.allclose(loss.inner, here, atol=atol)
    for name, value in objective.named_parameters():
        assert value.device == ELSEWHERE, name
        if name in gradients:
            assert value.grad.device == ELSEWHERE and torch.allclose(value.grad.inner, gradients[name], atol=atol), name
