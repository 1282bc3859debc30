"""What the statistics of image tokens (encoder/statistics.py) are measured on, and the check that they normalise."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from encoder.statistics import TokenStatistics

MEAN_TOLERANCE, VARIANCE_TOLERANCE = 0.02, 0.05  # of the averages over channels
CHANNEL_MEAN_TOLERANCE, CHANNEL_VARIANCE_TOLERANCE, CHANCE = 0.1, 0.25, 5.0  # of one channel; in standard errors
CHECKED_PICTURES = 1024
MEASURED_FOR_A_CHECK = 4096  # with so many left to measure on, the checked pictures are others than the measured


def measured_and_checked(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the pictures to measure on, ascending, and of those to check on: others where there are enough."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    checked = order[:CHECKED_PICTURES]
    measured = order[CHECKED_PICTURES:] if count >= CHECKED_PICTURES + MEASURED_FOR_A_CHECK else order
    return measured.sort().values, checked


def token_covariance(chunks: Callable[[], Iterable[Tensor]], statistics: TokenStatistics) -> Tensor:
    """Covariance of normalised tokens [channels, channels], float64; chunks: as in token_statistics."""
    total = 0.0
    for chunk in chunks():
        tokens = (chunk.double().flatten(0, -2) - statistics.mean) / statistics.std
        total = total + tokens.T @ tokens
    return total / statistics.count


def check_normalized(normalized: Tensor, statistics: TokenStatistics) -> str:
    """normalized [pictures, num_patches, channels] of random training pictures -> a report in one line.

    Judged are the averages over channels and every channel: an average of 1 may hide a variance of 1.9 beside one of
    0.1. Floored channels are left out: their variance is below 1 by design.

    Raises:
        ValueError: mean or variance is off by more than the tolerances, a channel's also by more than chance: 5
            standard errors over the pictures, whose tokens are not independent of each other.
    """
    alive = normalized.double()[..., ~statistics.floored]
    mean, mean_error = _mean_and_error(alive)
    square, square_error = _mean_and_error(alive.square())
    variance = square - mean.square()
    beyond = (alive.abs() > 5).double().mean().item()
    report = (
        f"normalised tokens of {len(normalized)} pictures: mean {mean.mean():+.4f}, variance {variance.mean():.4f}, "
        f"per channel {variance.min():.3g} to {variance.max():.3g}, {100 * beyond:.4f}% beyond 5 sigma; raw variance "
        f"per channel {statistics.variance.min():.3g} to {statistics.variance.max():.3g}, "
        f"{int(statistics.floored.sum())} of {len(statistics.floored)} channels floored"
    )
    off = (mean.abs() > CHANNEL_MEAN_TOLERANCE + CHANCE * mean_error) | (
        (variance - 1).abs() > CHANNEL_VARIANCE_TOLERANCE + CHANCE * square_error
    )
    if abs(mean.mean()) > MEAN_TOLERANCE or abs(variance.mean() - 1) > VARIANCE_TOLERANCE or off.any():
        raise ValueError(
            f"The stored token statistics do not fit the data in {int(off.sum())} of {len(off)} channels ({report}): "
            "measure them anew."
        )
    return report


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """values [pictures, num_patches, channels] -> the mean of each channel, and its standard error over pictures."""
    pictures = values.mean(1)
    return pictures.mean(0), pictures.std(0, unbiased=False) / len(pictures) ** 0.5
