"""Numbers that say how sure they are."""

import math


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share of `hits` among `count` (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half


def share(hits: int, count: int) -> dict[str, float | int | list[float]]:
    """{"value", "count", "interval"}: a share as reports print it, with N and the 95% Wilson interval."""
    return {"value": hits / max(count, 1), "count": count, "interval": list(wilson(hits, count))}
