"""Fixed two-dimensional sine-cosine positions, as in MoCo v3."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Positions of a row-major grid: [height * width, dim], the four quarters sin x, cos x, sin y, cos y.

    omega_i = 10000 ** (-i / (dim / 4 - 1)), as OpenVision's `posemb_sincos_2d` (MAE divides by dim / 4).

    Raises:
        ValueError: dim is not a multiple of 4, or below 8.
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"Sine-cosine positions need a width that is a multiple of 4 and at least 8, not {dim}.")
    return torch.tensor(_table(height, width, dim))


@lru_cache(maxsize=32)
def _table(height: int, width: int, dim: int) -> np.ndarray:
    # In NumPy, since a cached tensor would keep whatever it was first made under: a meta device, inference mode.
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim // 4 - 1))
    y, x = (axis.reshape(-1, 1) * omega for axis in np.mgrid[:height, :width])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
