"""Muon: the matrices inside a network's blocks step along orthogonalised momentum, everything else by AdamW.

Keller Jordan's method (https://kellerjordan.github.io/posts/muon) with the scale of Moonlight (arXiv 2502.16982), whose
updates have AdamW's size, so that AdamW's learning rates keep their meaning. `torch.optim.Muon` holds matrices only and
computes in bfloat16, which a CPU emulates twenty times more slowly.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# Quintic whose iteration draws singular values towards 1 (Jordan's); four rounds bring them to about 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 4
MOMENTUM = 0.95
# Root mean square of AdamW's usual update (Moonlight, section 2.2).
UPDATE_RMS = 0.2
# Modulation layers start at zero and are read as vectors: AdamW's, though they lie inside blocks.
MODULATION = "adaLN"


def hidden_matrices(module: nn.Module) -> list[str]:
    """Names of the trainable linear and convolution weights inside numbered blocks (an `nn.ModuleList`).

    Embeddings, heads and projections lie outside of such lists and stay AdamW's.
    """
    found = {}
    for prefix, blocks in module.named_modules():
        if isinstance(blocks, nn.ModuleList):
            for name, layer in blocks.named_modules(prefix=prefix):
                if isinstance(layer, nn.Linear | nn.Conv2d) and MODULATION not in name and layer.weight.requires_grad:
                    found[f"{name}.weight"] = None
    return list(found)


@torch.no_grad()
def orthogonalize(matrices: Tensor) -> Tensor:
    """matrices [count, rows, columns] -> the nearest semi-orthogonal ones, roughly: singular values near 1.

    All of an iteration's polynomials are functions of the Gram matrix, so iterations multiply its small square instead
    of the whole matrix. In float32 on the CPU, else in bfloat16, in which matrix units are fast.
    """
    a, b, c = COEFFICIENTS
    dtype = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = (wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    gram = wide @ wide.mT
    identity = torch.eye(gram.shape[1], dtype=dtype, device=gram.device)
    product = None
    for iteration in range(ITERATIONS):
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        product = step if product is None else step @ product
        if iteration + 1 < ITERATIONS:
            gram = step @ gram @ step
    result = (product @ wide).to(matrices.dtype)
    return result if matrices.shape[1] <= matrices.shape[2] else result.mT


class Muon(Optimizer):
    """One optimizer for both halves: parameter groups with `muon: True` take Muon's step, the others AdamW's (fused).

    Args:
        groups: parameter groups, each with `params` (matrices, or convolution kernels seen as matrices of their output
            channels, where `muon` is true), `lr`, `weight_decay` and `muon`.
        betas, eps: of AdamW.
    """

    def __init__(self, groups: Iterable[dict], betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8) -> None:
        # `fused` tells Optimizer.load_state_dict to keep AdamW's step counts beside the parameters.
        super().__init__(groups, {"betas": betas, "eps": eps, "fused": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [value for value in group["params"] if value.grad is not None]
            if parameters:
                (self._muon_step if group["muon"] else self._adamw_step)(parameters, group)

    def _kept(self, parameters: list[Tensor], name: str, scalar: bool = False) -> list[Tensor]:
        """What is remembered of each parameter under this name; zeros at first."""
        for value in parameters:
            if name not in self.state[value]:
                self.state[value][name] = torch.zeros((), device=value.device) if scalar else torch.zeros_like(value)
        return [self.state[value][name] for value in parameters]

    def _adamw_step(self, parameters: list[Tensor], group: dict) -> None:
        adamw(
            parameters,
            [value.grad for value in parameters],
            self._kept(parameters, "exp_avg"),
            self._kept(parameters, "exp_avg_sq"),
            [],
            self._kept(parameters, "step", scalar=True),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _muon_step(self, parameters: list[Tensor], group: dict) -> None:
        gradients, momenta = [value.grad for value in parameters], self._kept(parameters, "momentum_buffer")
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        looked_ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, value in enumerate(parameters):
            by_shape.setdefault((value.shape[0], value[0].numel()), []).append(index)
        for (rows, columns), members in by_shape.items():
            stacked = torch.stack([looked_ahead[index].reshape(rows, columns) for index in members])
            updates = orthogonalize(stacked)
            scale = group["lr"] * UPDATE_RMS * max(rows, columns) ** 0.5
            for index, update in zip(members, updates, strict=True):
                parameters[index].sub_(update.reshape(parameters[index].shape), alpha=scale)


def make_muon(
    module: nn.Module, decaying: Iterable[str], learning_rate: float, muon_learning_rate: float, weight_decay: float,
    betas: tuple[float, float],
) -> Muon:  # fmt: skip
    """Muon for a module's hidden matrices and AdamW for its other trainable parameters.

    Args:
        decaying: names of the parameters that weight decay applies to.

    Raises:
        ValueError: no trainable matrix lies inside a block.
    """
    matrices, decaying = set(hidden_matrices(module)), set(decaying)
    if not matrices:
        raise ValueError("optimizer=muon found no trainable matrix inside a block; use optimizer=adamw.")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, value in module.named_parameters():
        if value.requires_grad:
            groups.setdefault((name in matrices, name in decaying), []).append(value)
    return Muon(
        [
            {
                "params": parameters,
                "muon": muon,
                "lr": muon_learning_rate if muon else learning_rate,
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (muon, decays), parameters in groups.items()
        ],
        betas=betas,
    )
