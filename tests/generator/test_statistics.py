"""Token statistics: exact, floored, checked."""

import pytest
import torch

from generator.statistics import check_normalized, token_statistics


def tokens(mean: float = 1e4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 4, 6, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 1e-4]) + mean
    return values


def test_two_passes_are_exact_far_from_zero():
    values = tokens()
    statistics = token_statistics(lambda: values.split(90))
    exact = values.double().flatten(0, 1)
    assert torch.allclose(statistics.mean.double(), exact.mean(0), rtol=1e-7)
    assert torch.allclose(statistics.variance.double()[:5], exact.var(0, unbiased=False)[:5], rtol=1e-5)
    assert statistics.count == 1600


def test_dead_channels_are_floored_and_counted():
    statistics = token_statistics(lambda: [tokens(0.0)])
    assert statistics.floored.tolist() == [False] * 5 + [True]
    assert statistics.std[5].item() == pytest.approx((1e-3 * statistics.variance.median()).sqrt().item())


def test_the_check_passes_on_its_own_tokens_and_refuses_others():
    values = tokens(0.0)
    statistics = token_statistics(lambda: [values])
    normalized = (values - statistics.mean) / statistics.std
    assert "1 of 6 channels floored" in check_normalized(normalized, statistics)
    for wrong in (normalized + 0.03, normalized * 1.04):
        with pytest.raises(ValueError, match="do not fit the data"):
            check_normalized(wrong, statistics)


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="statistics need training pictures"):
        token_statistics(lambda: [])
