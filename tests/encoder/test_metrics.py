"""Metrics against scikit-image and a direct formula."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from encoder.metrics import frechet_distance, psnr, ssim

skimage = pytest.importorskip("skimage.metrics")


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 16, 24, generator=generator) * 2 - 1
    return (target + 0.3 * torch.randn(target.shape, generator=generator)).clamp(-1, 1), target


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (psnr, lambda a, b: skimage.peak_signal_noise_ratio(b, a, data_range=2)),
        (ssim, lambda a, b: skimage.structural_similarity(b, a, data_range=2, channel_axis=0)),
    ],
)
def test_psnr_and_ssim_are_scikit_images(pictures, ours, theirs):
    values = ours(*pictures)
    expected = [theirs(a.double().numpy(), b.double().numpy()) for a, b in zip(*pictures, strict=True)]
    assert values.shape == (3,)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-6)


def test_equal_pictures_and_tiny_ones(pictures):
    _, target = pictures
    assert psnr(target, target).isinf().all()
    torch.testing.assert_close(ssim(target, target), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 7 x 7"):
        ssim(target[..., :6], target[..., :6])


@pytest.mark.parametrize("count, width", [(50, 6), (4, 6), (30, 1)])
def test_frechet_distance_is_the_formula(count, width):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    b = rng.normal(size=(count + 5, width)) + 0.5
    cov_a, cov_b = (np.cov(x, rowvar=False, ddof=1).reshape(width, width) for x in (a, b))
    root = sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, torch.from_numpy(b)) == pytest.approx(expected, rel=1e-5)
    # Of a singular covariance the roots of rounding errors remain: about sqrt(1e-16) a dimension.
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
