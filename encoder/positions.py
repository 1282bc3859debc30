"""Fixed two-dimensional sine-cosine positions, as in MoCo v3."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# Highest and lowest angular frequency, in radians per patch, of OpenVision's `posemb_sincos_2d`.
OPENVISION_FREQUENCIES = (1.0, 1e-4)

# Ours, for grids of a few patches: there all but the first third of OpenVision's frequencies are nearly constant, and
# "left of" is learned late (docs/log.md, 2026-11-24).
SMALL_GRID_FREQUENCIES = (2.0, 0.2)


@torch.compiler.assume_constant_result  # torch.compile would trace into NumPy
def sincos_positions(
    height: int, width: int, dim: int, frequencies: Sequence[float] = OPENVISION_FREQUENCIES
) -> Tensor:
    """Positions of a row-major grid: [height * width, dim], the four quarters sin x, cos x, sin y, cos y.

    omega_i = highest * (highest / lowest) ** (-i / (dim / 4 - 1)), as OpenVision (MAE divides by dim / 4).

    Args:
        frequencies: highest and lowest, radians per patch.

    Raises:
        ValueError: dim is not a multiple of 4, or below 8; frequencies are not two falling positive numbers.
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"Sine-cosine positions need a width that is a multiple of 4 and at least 8, not {dim}.")
    if len(frequencies) != 2 or not frequencies[0] > frequencies[1] > 0:
        raise ValueError(f"Position frequencies are the highest and the lowest, both above 0, not {frequencies}.")
    return torch.tensor(_table(height, width, dim, *frequencies))


@lru_cache(maxsize=32)
def _table(height: int, width: int, dim: int, highest: float, lowest: float) -> np.ndarray:
    # In NumPy, since a cached tensor would keep whatever it was first made under: a meta device, inference mode.
    omega = highest * (highest / lowest) ** (-np.arange(dim // 4) / (dim // 4 - 1))
    y, x = (axis.reshape(-1, 1) * omega for axis in np.mgrid[:height, :width])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
