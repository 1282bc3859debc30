"""The objective on a device that is not the CPU, without having one: a tensor left behind on the CPU fails.

"meta" names that device: its tensors are wrapped CPU tensors that compute, and every operation that mixes them with
CPU tensors is refused, as a GPU's are.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import LlavaForConditionalGeneration

from mllm.conversation import IGNORED
from mllm.objective import MultimodalObjective

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


def _batch(model, rows, cached, text_only=False):
    ids = torch.randint(4, 300, (rows, 12))
    if not text_only:
        ids[:, 2:6] = model.config.image_token_id
    labels = ids.masked_fill(torch.arange(12) < 8, IGNORED)
    count = 1 if text_only else rows
    images = torch.randn(count, 4, 32) if cached else torch.randn(count, 3, 32, 32)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "images": images}


@pytest.mark.parametrize(
    ("rows", "cached", "text_only"), [(2, False, False), (2, True, False), (2, False, True), (64, True, False)]
)
def test_forward_and_backward_run_where_parameters_and_inputs_are(family, rows, cached, text_only):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    model.model.vision_tower.requires_grad_(False).eval()
    objective = MultimodalObjective(model, cached)
    batch = _batch(model, rows, cached, text_only)
    here = objective(**batch)["loss"]
    here.backward()
    gradients = {name: value.grad for name, value in objective.named_parameters()}
    with OtherDevice():
        objective.zero_grad()
        objective.to(ELSEWHERE)
        loss = objective(**{name: value.to(ELSEWHERE) for name, value in batch.items()})["loss"]
        loss.backward()
    assert loss.device == ELSEWHERE and torch.allclose(loss.inner, here)
    for name, value in objective.named_parameters():
        assert value.device == value.grad.device == ELSEWHERE
        assert torch.allclose(value.grad.inner, gradients[name], atol=1e-6), name


@pytest.mark.parametrize("name", ["input_ids", "labels", "attention_mask"])
def test_a_stray_cpu_tensor_fails(family, name):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    objective = MultimodalObjective(model, cached=True)
    batch = _batch(model, 2, cached=True)
    with OtherDevice(), pytest.raises(RuntimeError, match="mixes tensors|same device|device meta"):
        objective.to(ELSEWHERE)
        objective(**{key: value if key == name else value.to(ELSEWHERE) for key, value in batch.items()})


def test_a_tower_in_float32_serves_trained_parts_in_bfloat16(family):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    objective = MultimodalObjective(model, cached=False)
    batch = _batch(model, 2, cached=False)
    full = objective(**batch)["loss"]
    objective.to(torch.bfloat16)  # as DeepSpeed does, which casts the pixels too
    half = objective(**{**batch, "images": batch["images"].bfloat16()})["loss"]
    assert torch.allclose(full, half, rtol=0.02)
    assert next(model.model.vision_tower.parameters()).dtype == torch.float32


@pytest.mark.parametrize(("images", "places"), [(2, 4), (1, 8), (3, 8), (2, 0)])
def test_pictures_that_are_not_the_rows_are_refused_not_shifted(family, images, places):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    ids = torch.full((1, 12), 5)
    ids[:, :places] = model.config.image_token_id
    with pytest.raises(ValueError, match=rf"have \[{places}\] image tokens and its {images} pictures have 4 each"):
        MultimodalObjective(model, cached=True)(ids, ids, torch.ones_like(ids), torch.zeros(images, 4, 32))
