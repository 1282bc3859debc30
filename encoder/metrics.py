"""How close pictures, and sets of features, are to each other."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def psnr(pixel_values: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one value a picture; both [batch, 3, height, width] in [-1, 1]."""
    mse = ((pixel_values.double() - target.double()) ** 2).flatten(1).mean(dim=1)
    return 10 * torch.log10(4.0 / mse)


def ssim(pixel_values: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, one value a picture; both [batch, 3, height, width] in [-1, 1].

    scikit-image's default definition: a uniform 7 x 7 window, sample covariance, mean over the pixels whose window
    lies inside the picture, mean over channels (Wang et al. 2004 with K1 = 0.01, K2 = 0.03).

    Raises:
        ValueError: a side below 7 pixels.
    """
    window = 7
    if min(pixel_values.shape[2:]) < window:
        raise ValueError(
            f"SSIM needs pictures of at least {window} x {window} pixels, not {list(pixel_values.shape[2:])}."
        )
    x, y = pixel_values.double(), target.double()
    mean_x, mean_y = F.avg_pool2d(x, window, stride=1), F.avg_pool2d(y, window, stride=1)
    unbiased = window**2 / (window**2 - 1)
    var_x = unbiased * (F.avg_pool2d(x * x, window, stride=1) - mean_x**2)
    var_y = unbiased * (F.avg_pool2d(y * y, window, stride=1) - mean_y**2)
    cov = unbiased * (F.avg_pool2d(x * y, window, stride=1) - mean_x * mean_y)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return values.flatten(1).mean(dim=1)


def frechet_distance(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to two sets of features [n, d] (covariance with ddof 1, float64).

    The trace of the matrix root comes from eigenvalues of sqrt(A) B sqrt(A), which is symmetric: no complex numbers.

    Raises:
        ValueError: the sets are not [n, d] of one d, or hold fewer than two rows.
    """
    a, b = (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values) for values in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"The Frechet distance compares two [n, d] with n > 1, not {a.shape} with {b.shape}.")
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace)
