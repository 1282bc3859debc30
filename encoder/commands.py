"""What the commands on pictures share: their arguments, and the way from a file to pixel_values."""

import math
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoder.images import load_image, to_pixel_values


def add_device_argument(parser: ArgumentParser) -> None:
    """--device, where a command runs its model."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def add_picture_arguments(parser: ArgumentParser) -> None:
    """The pictures and how they are read: --image-size, --keep-aspect; and --device."""
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the model's own")
    parser.add_argument(
        "--keep-aspect",
        action="store_true",
        help="a grid of the picture's own shape, about as many tokens; default: squeezed to a square, as in training",
    )
    add_device_argument(parser)


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: it is not there.
    """
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"The device {name!r} cannot be used here ({error}); choose cpu.") from error


def grid_of(width: int, height: int, image_size: int, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of about (image_size / patch_size)^2 patches, in the shape of a picture of width x height.

    A picture longer than that many times its width is squeezed to one row or column of as many patches.
    """
    side = image_size // patch_size
    shape = min(max(width / height, side**-2), side**2)
    return max(1, round(side / math.sqrt(shape))), max(1, round(side * math.sqrt(shape)))


def read_pixel_values(path: Path, args: Namespace, own_size: int, patch_size: int) -> Tensor:
    """A picture -> pixel_values [1, 3, height, width] in [-1, 1] on the CPU, as --image-size and --keep-aspect ask.

    own_size: of the model's pictures, in pixels: the side where --image-size names none.

    Raises:
        ValueError: --image-size is no multiple of patch_size. ImageError: the picture cannot be read.
    """
    image_size = own_size if args.image_size is None else args.image_size
    if image_size < patch_size or image_size % patch_size:
        raise ValueError(f"--image-size is {image_size} and must be a multiple of the model's patch, {patch_size}.")
    image = load_image(path)
    if not args.keep_aspect:
        return to_pixel_values([image], image_size)
    rows, columns = grid_of(*image.size, image_size, patch_size)
    resized = image.resize((columns * patch_size, rows * patch_size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
