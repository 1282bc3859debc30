"""The linear f8, 16-channel code: a PCA of 8 x 8 x 3 patches. Baseline of every VAE, and teacher of the tiny one."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from encoder.vae import DOWNSAMPLING, LATENT_CHANNELS


@dataclass
class LinearCode:
    """mean [192], directions [192, 16], std [16]: of patches in the order of `pixel_unshuffle`."""

    mean: Tensor
    directions: Tensor
    std: Tensor

    @classmethod
    def fit(cls, pixel_values: Tensor) -> Self:
        """From pictures [batch, 3, height, width] in [-1, 1]."""
        rows = F.pixel_unshuffle(pixel_values, DOWNSAMPLING).permute(0, 2, 3, 1).flatten(0, 2)
        mean = rows.mean(dim=0)
        variance, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        return cls(mean, directions[:, -LATENT_CHANNELS:], variance[-LATENT_CHANNELS:].sqrt())

    def encode(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [batch, 3, height, width] -> [batch, 16, height/8, width/8], each channel of unit variance."""
        mean, directions, std = self._beside(pixel_values)
        patches = F.pixel_unshuffle(pixel_values, DOWNSAMPLING).movedim(1, -1) - mean
        return (patches @ directions / std).movedim(-1, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """The pixel_values nearest to those that `encode` made codes [batch, 16, height/8, width/8] of."""
        mean, directions, std = self._beside(codes)
        patches = (codes.movedim(1, -1) * std) @ directions.T + mean
        return F.pixel_shuffle(patches.movedim(-1, 1), DOWNSAMPLING)

    def _beside(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mean, directions and std on the device of `values`."""
        return self.mean.to(values.device), self.directions.to(values.device), self.std.to(values.device)
