"""What a cache holds of every picture: the whole or its centre, mirrored, cut at random; the same on every machine."""

import hashlib
import io
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from encoder.images import load_image, to_pixel_values

# OpenVision's crops: this share of the area at least, and sides between 3:4 and 4:3 (reference: OV1's transforms).
MIN_AREA, MAX_RATIO = 0.4, 4 / 3
ATTEMPTS = 10
# Of a picture longer than so many times its width, centre_crop sees the middle: resized whole it might fill the memory.
LONGEST = 8


@dataclass(frozen=True)
class Views:
    """Which views of a picture there are.

    Args:
        count: views a picture.
        crop: "none": the whole picture, squeezed to a square, so that captions stay true; "centre": the square in the
            middle, as in ADM; "random": the whole picture first, then parts of 40 to 100% of its area.
        flip: every second view is mirrored.
        seed: of the random parts and colours, which depend on it, the picture's key and the view's number alone.
        jitter: all views but the first have brightness, contrast and saturation multiplied by factors drawn from
            1 - jitter to 1 + jitter, 0 <= jitter < 1. It may make captions about colours false.

    Raises:
        ValueError: two views would be equal, or a setting is out of its range.
    """

    count: int = 1
    crop: Literal["none", "centre", "random"] = "none"
    flip: bool = False
    seed: int = 0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in ("none", "centre", "random"):
            raise ValueError(f"crop is {self.crop!r}; choose none, centre or random.")
        if self.count < 1:
            raise ValueError(f"{self.count} views of a picture were asked for; ask for 1 or more.")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter is {self.jitter}; give 0 for none, or less than 1.")
        if self.crop != "random" and not self.jitter and self.count > 1 + self.flip:
            raise ValueError(
                f"Of {self.count} views some would be equal: ask for 1, for 2 with flips, or for crops or jitter."
            )

    def pixels(self, image: Image.Image, key: str, size: int) -> Tensor:
        """All views of an RGB picture: uint8 [count, 3, size, size]."""
        views = [self._view(image, key, number, size) for number in range(self.count)]
        return ((to_pixel_values(views, size) + 1) * 127.5).round().to(torch.uint8)

    def _view(self, image: Image.Image, key: str, number: int, size: int) -> Image.Image:
        name = hashlib.blake2b(key.encode(), digest_size=8).digest()
        rng = np.random.default_rng((self.seed, number, int.from_bytes(name)))
        if self.crop == "centre":
            image = centre_crop(image, size)
        elif self.crop == "random" and number:
            image = random_part(image, rng)
        if self.jitter and number:
            image = other_colours(image, self.jitter, rng)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip and number % 2 else image

    def fingerprint(self, size: int) -> str:
        """Changes whenever pictures would be read, cut or resized otherwise: a hash of what fixed pictures become."""
        rng = np.random.default_rng(0)
        digest = hashlib.sha256(repr((size, sorted(asdict(self).items()))).encode())
        for shape, kind in (((size + 23, 2 * size + 37, 3), np.uint8), ((31, 45, 4), np.uint8), ((20, 20), np.uint16)):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, np.iinfo(kind).max, shape, dtype=kind)).save(file, "PNG")
            digest.update(self.pixels(load_image(file), str(shape), size).numpy().tobytes())
        return digest.hexdigest()[:16]


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The square in the middle, size x size, as ADM cuts it: halved by box, then bicubic (guided-diffusion)."""
    if max(image.size) > LONGEST * min(image.size):
        width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_part(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of 40 to 100% of the area; the whole where the picture is too narrow for one in ten attempts."""
    for _ in range(ATTEMPTS):
        area = image.width * image.height * rng.uniform(MIN_AREA, 1.0)
        ratio = math.exp(rng.uniform(-math.log(MAX_RATIO), math.log(MAX_RATIO)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
            return image.crop((left, top, left + width, top + height))
    return image


def other_colours(image: Image.Image, jitter: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, in this order, by factors from 1 - jitter to 1 + jitter."""
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(1 - jitter, 1 + jitter))
    return image
