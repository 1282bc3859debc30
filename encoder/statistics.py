"""Mean and standard deviation of image tokens, per channel."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

VARIANCE_FLOOR = 1e-3  # of the median variance: dead channels would be blown up


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
