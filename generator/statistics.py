"""Mean and standard deviation of image tokens, per channel, and the check that they normalise."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

VARIANCE_FLOOR = 1e-3  # of the median variance: dead channels would be blown up
MEAN_TOLERANCE = 0.02
VARIANCE_TOLERANCE = 0.05
CHECKED_PICTURES = 1024


@dataclass(frozen=True)
class TokenStatistics:
    """mean, std (with the floor in it), variance (as measured), floored (bool), each [channels]; count of tokens."""

    mean: Tensor
    std: Tensor
    variance: Tensor
    floored: Tensor
    count: int


def token_statistics(chunks: Callable[[], Iterable[Tensor]]) -> TokenStatistics:
    """Exact statistics per channel in float64, in two passes: first the mean, then squares around it.

    chunks: called twice, gives image tokens [pictures, num_patches, channels] piece by piece, the same both times.
    """
    total, count = 0.0, 0
    for chunk in chunks():
        total = total + chunk.double().flatten(0, -2).sum(0)
        count += chunk[..., 0].numel()
    if count < 2:
        raise ValueError(
            f"There are {count} image tokens: statistics need training pictures, look at the recipe's data."
        )
    mean = total / count
    squares = 0.0
    for chunk in chunks():
        squares = squares + (chunk.double().flatten(0, -2) - mean).square().sum(0)
    variance = squares / count
    floor = VARIANCE_FLOOR * variance.median()
    return TokenStatistics(
        mean.float(), variance.clamp(min=floor).sqrt().float(), variance.float(), variance < floor, count
    )


def token_covariance(chunks: Callable[[], Iterable[Tensor]], statistics: TokenStatistics) -> Tensor:
    """Covariance of normalised tokens [channels, channels], float64; chunks: as in token_statistics."""
    total = 0.0
    for chunk in chunks():
        tokens = (chunk.double().flatten(0, -2) - statistics.mean) / statistics.std
        total = total + tokens.T @ tokens
    return total / statistics.count


def check_normalized(normalized: Tensor, statistics: TokenStatistics) -> str:
    """normalized [pictures, num_patches, channels] of random training pictures -> a report; refuses what is off.

    Floored channels are left out: their variance is below 1 by design.
    """
    alive = normalized.double().flatten(0, -2)[:, ~statistics.floored]
    mean, variance = alive.mean().item(), alive.var(0, unbiased=False).mean().item()
    beyond = (alive.abs() > 5).double().mean().item()
    report = (
        f"normalised tokens of {len(normalized)} pictures: mean {mean:+.4f}, variance {variance:.4f}, "
        f"{100 * beyond:.4f}% beyond 5 sigma; raw variance per channel {statistics.variance.min():.3g} to "
        f"{statistics.variance.max():.3g}, {int(statistics.floored.sum())} of {len(statistics.floored)} channels "
        "floored"
    )
    if not (abs(mean) <= MEAN_TOLERANCE and abs(variance - 1) <= VARIANCE_TOLERANCE):
        raise ValueError(f"The stored token statistics do not fit the data ({report}): measure them anew.")
    return report
