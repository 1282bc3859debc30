"""How close a set of drawings is to a set of pictures, both as features [n, d]; encoder.metrics has the Frechet one."""

import numpy as np
import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as torch-fidelity has them
NEIGHBOURS = 3  # Kynkaanniemi et al. 2019, appendix A
ROWS_AT_A_TIME = 2048


def _check(drawn: Tensor, real: Tensor, least: int) -> None:
    if drawn.ndim != 2 or real.ndim != 2 or drawn.shape[1] != real.shape[1] or min(len(drawn), len(real)) < least:
        raise ValueError(
            f"Features are {list(drawn.shape)} and {list(real.shape)}: give two sets [n, d] of one d, n at least "
            f"{least}."
        )


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distance(drawn: Tensor, real: Tensor, seed: int = 0) -> dict[str, float]:
    """KID (Binkowski et al. 2018): the unbiased squared MMD under the kernel (x y / d + 1)^3, features [n, d].

    Two sets of one size, at most SUBSET_SIZE, are compared whole; of others so many rows, or as many as the smaller
    has, are drawn SUBSETS times.

    Returns:
        mean and std over the subsets (std 0 for whole sets). The mean may be below 0: it is unbiased.

    Raises:
        ValueError: the sets are not [n, d] of one d, or hold fewer than two rows.
    """
    _check(drawn, real, least=2)
    drawn, real = drawn.double(), real.double()
    size = min(len(drawn), len(real), SUBSET_SIZE)
    whole = len(drawn) == len(real) == size
    rng, values = np.random.default_rng(seed), []
    for _ in range(1 if whole else SUBSETS):
        x, y = (each[torch.from_numpy(rng.permutation(len(each))[:size])] for each in (drawn, real))
        within = sum((kernel.sum() - kernel.trace()) / (size * (size - 1)) for kernel in (_kernel(x, x), _kernel(y, y)))
        values.append(float(within - 2 * _kernel(x, y).mean()))
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def _radii(features: Tensor) -> Tensor:
    """Each row's distance to its NEIGHBOURS-th nearest other row, [n]."""
    return torch.cat([torch.cdist(rows, features).kthvalue(NEIGHBOURS + 1, dim=1).values
                      for rows in features.split(ROWS_AT_A_TIME)])  # fmt: skip


def _covered(features: Tensor, by: Tensor, radii: Tensor) -> float:
    """The share of rows that lie in the ball of any row of `by`."""
    inside = [(torch.cdist(rows, by) <= radii).any(dim=1) for rows in features.split(ROWS_AT_A_TIME)]
    return torch.cat(inside).double().mean().item()


def precision_recall(drawn: Tensor, real: Tensor) -> dict[str, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), features [n, d].

    A set's manifold is the balls around its rows that reach to the NEIGHBOURS-th nearest other row.

    Returns:
        precision: the share of drawings on the manifold of the real pictures; recall: the other way round.

    Raises:
        ValueError: the sets are not [n, d] of one d, or hold too few rows to have so many neighbours.
    """
    _check(drawn, real, least=NEIGHBOURS + 1)
    drawn, real = drawn.double(), real.double()
    return {"precision": _covered(drawn, real, _radii(real)), "recall": _covered(real, drawn, _radii(drawn))}
