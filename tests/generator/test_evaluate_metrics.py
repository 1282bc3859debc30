"""Distances between sets of features against direct computations, and sets whose answer is known."""

import numpy as np
import pytest
import torch

from generator import metrics
from generator.metrics import kernel_distance, precision_recall


def direct_kid(x: np.ndarray, y: np.ndarray) -> float:
    """Binkowski et al. 2018, equation 4, sum by sum."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n)


def test_kernel_distance_is_the_papers_sum(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)), rng.normal(0.5, 1, size=(12, 5))
    found = kernel_distance(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    assert found["mean"] == pytest.approx(direct_kid(x, y), rel=1e-5) and found["std"] == 0
    # unbiased: over many subsets it comes to the value of the whole, and of one population it is 0 on average
    monkeypatch.setattr(metrics, "SUBSET_SIZE", 6)
    monkeypatch.setattr(metrics, "SUBSETS", 2000)
    subsets = kernel_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert subsets["mean"] == pytest.approx(direct_kid(x, y), abs=5 * subsets["std"] / 2000**0.5)
    one, other = torch.randn(2, 600, 4, generator=torch.Generator().manual_seed(1)).double()
    same = kernel_distance(one, other)
    assert abs(same["mean"]) < 0.05 < kernel_distance(one, other + 1)["mean"]


def on_a_line(*places: float) -> torch.Tensor:
    return torch.tensor(places)[:, None]


def test_precision_and_recall_of_sets_whose_answer_is_known():
    real = on_a_line(0, 1, 2, 3, 10, 11, 12, 13)  # two clusters; balls reach 3, 2, 2, 3 around each
    assert precision_recall(real, real) == {"precision": 1, "recall": 1}
    far = precision_recall(real + 1000, real)
    assert far == {"precision": 0, "recall": 0}
    one_cluster = on_a_line(0.5, 1.5, 2.5, 3.5)  # all of it real, and only half of the real is reached
    assert precision_recall(one_cluster, real) == {"precision": 1, "recall": 0.5}
    stray = on_a_line(0.5, 1.5, 2.5, 3.5, 6.5, 500, 600, 700)  # 6.5 lies between, the last three nowhere
    assert precision_recall(stray, real)["precision"] == 0.5
    # the nearest other rows count, not the row itself: a ball of the third neighbour ends exactly at it
    assert precision_recall(on_a_line(-3, 0, 0, 0), real)["precision"] == 1
    assert precision_recall(on_a_line(-3.001, 0, 0, 0), real)["precision"] == 0.75


def test_rows_are_compared_in_parts_without_a_difference(monkeypatch):
    drawn, real = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(2))
    whole = precision_recall(drawn + 0.5, real)
    monkeypatch.setattr(metrics, "ROWS_AT_A_TIME", 7)
    assert precision_recall(drawn + 0.5, real) == whole and 0 < whole["precision"] < 1


@pytest.mark.parametrize("measure", [kernel_distance, precision_recall])
def test_sets_that_cannot_be_compared_are_refused(measure):
    for drawn, real in (((9, 3), (9, 4)), ((1, 3), (9, 3)), ((9,), (9, 3))):
        with pytest.raises(ValueError, match="give two sets"):
            measure(torch.zeros(drawn), torch.zeros(real))
