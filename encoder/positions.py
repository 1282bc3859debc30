"""Fixed two-dimensional sine-cosine positions, as in MoCo v3."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Positions of a row-major grid: [height * width, dim], the four quarters sin x, cos x, sin y, cos y.

    omega_i = 10000 ** (-i / (dim / 4 - 1)), as OpenVision's `posemb_sincos_2d` (MAE divides by dim / 4).

    Raises:
        ValueError: dim is not a multiple of 4, or below 8.
    """
    if dim % 4 or dim < 8:
        raise ValueError(f"Sine-cosine positions need a width that is a multiple of 4 and at least 8, not {dim}.")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4 - 1))
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()
