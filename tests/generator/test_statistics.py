"""Token statistics: exact, floored, checked."""

import pytest
import torch

from encoder.statistics import token_statistics
from generator.statistics import check_normalized, measured_and_checked


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
    # Two channels that an average over all of them would let pass: variances 1.88 and 0.12.
    for wrong in (torch.tensor([1.37, 0.35, 1, 1, 1, 1]), torch.tensor([0.35, 1.37, 1, 1, 1, 1])):
        assert (normalized * wrong)[..., :5].var().item() == pytest.approx(1.0, abs=0.05)
        with pytest.raises(ValueError, match="do not fit the data in 2 of 5 channels"):
            check_normalized(normalized * wrong, statistics)
    shift = torch.tensor([0.4, -0.4, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="do not fit the data in 2 of 5 channels"):
        check_normalized(normalized + shift, statistics)


def test_what_differs_by_chance_is_not_refused():
    """Pictures of one value each, and a channel that only every twentieth picture uses, checked on other pictures."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(6000, 1, 64, generator=generator).expand(-1, 4, -1).clone()
    values[..., 0] *= (torch.rand(6000, 1, generator=generator) < 0.05) * 4
    measured, checked = measured_and_checked(6000, seed=0)
    statistics = token_statistics(lambda: [values[measured]])
    check_normalized((values[checked] - statistics.mean) / statistics.std, statistics)


def test_checked_pictures_are_others_where_there_are_enough():
    measured, checked = measured_and_checked(5120, seed=0)
    assert len(measured) == 4096 and len(checked) == 1024
    assert sorted([*measured.tolist(), *checked.tolist()]) == list(range(5120))
    measured, checked = measured_and_checked(5119, seed=0)
    assert measured.tolist() == list(range(5119)) and len(checked) == 1024
    measured, checked = measured_and_checked(10, seed=0)
    assert len(measured) == len(checked) == 10


def test_no_tokens_are_refused():
    with pytest.raises(ValueError, match="statistics need training pictures"):
        token_statistics(lambda: [])
