"""Says when a picture is unlike those a family was trained on: the Mahalanobis distance of its pooled token.

How well it does: python -m demo.evaluate_outside.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "outside.safetensors"
# Added to the covariance's diagonal, as a share of its mean: pooled tokens have directions without variance.
SHRINKAGE = 1e-3
# Share of training pictures that lie beyond the threshold.
BEYOND = 0.001


@dataclass
class Outside:
    """mean [dim], precision [dim, dim] (inverse covariance), threshold: a distance."""

    mean: Tensor
    precision: Tensor
    threshold: float

    @classmethod
    def fit(cls, pooled: Tensor) -> "Outside":
        """From the pooled vectors of training pictures, [count, dim]."""
        pooled = pooled.double()
        mean = pooled.mean(dim=0)
        covariance = torch.cov(pooled.T)
        covariance += torch.eye(len(mean)) * SHRINKAGE * covariance.diagonal().mean()
        found = cls(mean.float(), torch.linalg.inv(covariance).float().contiguous(), 0.0)
        found.threshold = found.distance(pooled.float()).quantile(1 - BEYOND).item()
        return found

    def distance(self, pooled: Tensor) -> Tensor:
        """pooled [batch, dim] -> distances [batch], in standard deviations along each direction."""
        away = pooled.float() - self.mean
        return ((away @ self.precision) * away).sum(dim=1).clamp(min=0).sqrt()

    def save(self, folder: Path) -> None:
        save_file(
            {"mean": self.mean, "precision": self.precision, "threshold": torch.tensor(self.threshold)}, folder / FILE
        )

    @classmethod
    def load(cls, folder: Path) -> "Outside":
        state = load_file(folder / FILE)
        return cls(state["mean"], state["precision"], state["threshold"].item())
