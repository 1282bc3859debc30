"""LPIPS against its definition, written out in NumPy on random weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from encoder.lpips import load_lpips

# torchvision's numbers of VGG16's convolutions, by hand; LPIPS reads after the last of each row.
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def published():
    """Random weights under the published names, of a size that keeps features alive."""
    torch.manual_seed(0)
    vgg, inputs = {}, 3
    for row, width in zip(CONVOLUTIONS, WIDTHS, strict=True):
        for number in row:
            vgg[f"features.{number}.weight"] = torch.randn(width, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
            vgg[f"features.{number}.bias"] = 0.1 * torch.randn(width)
            inputs = width
    vgg["classifier.0.weight"] = torch.zeros(1)
    return vgg, {f"lin{level}.model.1.weight": torch.rand(1, width, 1, 1) for level, width in enumerate(WIDTHS)}


@pytest.fixture(scope="module")
def files(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    save_file(published[0], folder / "vgg.safetensors")
    torch.save(published[1], folder / "linear.pth")
    return folder / "vgg.safetensors", folder / "linear.pth"


def convolve(x, weight, bias):
    """3 x 3, zero padding: x [channels, height, width] -> [outputs, height, width]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def by_hand(published, picture):
    vgg, _ = published
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = ((picture + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    maps = []
    for level, row in enumerate(CONVOLUTIONS):
        if level:
            channels, height, width = x.shape
            x = x.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4))
        for number in row:
            weight, bias = (vgg[f"features.{number}.{kind}"].double().numpy() for kind in ("weight", "bias"))
            x = np.maximum(convolve(x, weight, bias), 0)
        maps.append(x / np.sqrt((x**2).sum(axis=0)))
    return maps


def test_it_is_what_the_paper_says(published, files):
    a, b = torch.rand(2, 2, 3, 16, 32) * 2 - 1
    distances = load_lpips(*files)(a, b)
    for row in range(2):
        total = 0.0
        ours, theirs = (by_hand(published, picture[row].double().numpy()) for picture in (a, b))
        for level, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            weight = published[1][f"lin{level}.model.1.weight"].double().numpy()[0]
            total += (weight * (x - y) ** 2).sum(axis=0).mean()
        assert distances[row].item() == pytest.approx(total, rel=1e-4) and total > 0.1


def test_equal_pictures_have_no_distance_and_a_finite_gradient(files):
    model = load_lpips(*files)
    a = torch.zeros(1, 3, 16, 16, requires_grad=True)
    with torch.no_grad():
        model.convolutions[0].bias.fill_(-100.0)  # no feature anywhere: vectors of length 0
    distance = model(a, torch.zeros(1, 3, 16, 16))
    distance.sum().backward()
    assert distance.item() == 0 and torch.isfinite(a.grad).all()
    assert not any(value.requires_grad for value in model.parameters())


def test_wrong_files_are_named(files, tmp_path):
    with pytest.raises(ValueError, match="no file nowhere.pth; encoder/lpips.py says where"):
        load_lpips("nowhere.pth", files[1])
    with pytest.raises(ValueError, match="has no weight features.0.weight; give the published file"):
        load_lpips(files[1], files[1])
    save_file(
        {f"lin{level}.model.1.weight": torch.zeros(1, 64, 1, 1) for level in range(5)}, tmp_path / "l.safetensors"
    )
    with pytest.raises(ValueError, match=r"l.safetensors has linear.1 of shape \[64\] and VGG16 has \[128\]"):
        load_lpips(files[0], tmp_path / "l.safetensors")
    (tmp_path / "text.pth").write_text("words")
    with pytest.raises(ValueError, match="text.pth cannot be read as plain tensors"):
        load_lpips(tmp_path / "text.pth", files[1])
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels, not \[8, 32\]"):
        load_lpips(*files)(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))
