"""LPIPS: how different two pictures look, by the features of VGG16 (Zhang et al. 2018, version 0.1 of its weights).

The weights are not ours to ship. Both files are given by path, as safetensors or as published:

    vgg      torchvision's vgg16, https://download.pytorch.org/models/vgg16-397923af.pth
    linear   `lpips/weights/v0.1/vgg.pth` of github.com/richzhang/PerceptualSimilarity
"""

import pickle
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

# Outputs of the 3 x 3 convolutions of VGG16 between its poolings; LPIPS reads the last of each group, after its ReLU.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and standard deviation for [0, 1], restated for [-1, 1] by the authors.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10
SMALLEST = 2 ** (len(GROUPS) - 1)


class LPIPS(nn.Module):
    """The distance of pictures, with gradients for the first of them only; its weights are frozen."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for group in GROUPS for width in group)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in pairwise(widths)
        )
        self.linear = nn.ParameterList(torch.zeros(group[-1]) for group in GROUPS)
        self.requires_grad_(False)

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values [batch, 3, height, width] in [-1, 1] -> five maps of unit vectors [batch, channels, h, w]."""
        hidden = (pixel_values - pixel_values.new_tensor(SHIFT).view(3, 1, 1)) / pixel_values.new_tensor(SCALE).view(
            3, 1, 1
        )
        convolutions, maps = iter(self.convolutions), []
        for number, group in enumerate(GROUPS):
            if number:
                hidden = F.max_pool2d(hidden, 2)
            for _ in group:
                hidden = F.relu(next(convolutions)(hidden))
            values = hidden.float()  # bfloat16 cannot tell near unit vectors apart
            maps.append(values / (torch.linalg.vector_norm(values, dim=1, keepdim=True) + EPS))
        return maps

    def forward(self, pixel_values: Tensor, target: Tensor) -> Tensor:
        """Both [batch, 3, height, width] in [-1, 1] -> distances [batch], 0 for equal pictures.

        Raises:
            ValueError: a side is below 16 pixels, too small for four poolings.
        """
        if min(pixel_values.shape[2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS needs pictures of at least {SMALLEST} x {SMALLEST} pixels, not {list(pixel_values.shape[2:])}."
            )
        with torch.no_grad():
            wanted = self.features(target)
        distance = pixel_values.new_zeros(pixel_values.shape[0], dtype=torch.float32)
        for ours, theirs, weight in zip(self.features(pixel_values), wanted, self.linear, strict=True):
            squares = (ours - theirs).square()
            distance = distance + torch.einsum("bchw,c->bhw", squares, weight.float()).mean(dim=(1, 2))
        return distance


def lpips_of_recipe(weight: float, pixel_loss_fraction: float, vgg: str | None, linear: str | None) -> LPIPS | None:
    """The distance that a recipe asks for by a weight above 0, else None.

    Raises:
        ValueError: no pixels are decoded, or a path is missing.
    """
    if weight == 0:
        return None
    if pixel_loss_fraction == 0:
        raise ValueError(
            "lpips_weight is above 0 and pixel_loss_fraction is 0: LPIPS needs pixels; change one of them."
        )
    if vgg is None or linear is None:
        missing = "lpips_vgg" if vgg is None else "lpips_linear"
        raise ValueError(
            f"lpips_weight is {weight} and {missing} is not set: give both files (encoder/lpips.py says where they are "
            "published), or lpips_weight 0."
        )
    return load_lpips(vgg, linear)


def load_lpips(vgg: str | Path, linear: str | Path) -> LPIPS:
    """The distance with published weights; see the head of this file.

    Raises:
        ValueError: a file is missing, is not plain tensors, or lacks a weight or has it in another shape.
    """
    model, files = LPIPS(), (Path(vgg), Path(linear))
    of_vgg, of_linear = map(_read, files)
    names, index = [], 0  # of convolutions among torchvision's `features`, which count ReLUs and poolings too
    for number, group in enumerate(GROUPS):
        index += bool(number)
        for _ in group:
            names.append(f"features.{index}")
            index += 2
    state = {}
    for number, name in enumerate(names):
        for kind in ("weight", "bias"):
            state[f"convolutions.{number}.{kind}"] = _weight(of_vgg, f"{name}.{kind}", files[0])
    for number in range(len(GROUPS)):
        state[f"linear.{number}"] = _weight(of_linear, f"lin{number}.model.1.weight", files[1]).flatten()
    for name, own in model.state_dict().items():
        if state[name].shape != own.shape:
            file = files[name.startswith("linear")]
            raise ValueError(
                f"LPIPS: {file} has {name} of shape {list(state[name].shape)} and VGG16 has {list(own.shape)}; "
                "give the published file."
            )
    model.load_state_dict(state)
    return model.eval()


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"LPIPS: there is no file {file}; encoder/lpips.py says where its weights are published.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"LPIPS: {file} cannot be read as plain tensors; fetch it again from its publisher."
        ) from error


def _weight(state: dict[str, Tensor], name: str, file: Path) -> Tensor:
    if name not in state:
        raise ValueError(f"LPIPS: {file} has no weight {name}; give the published file.")
    return state[name]
