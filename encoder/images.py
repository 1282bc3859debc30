"""Pictures in and out: safe loading, and the one way from a picture to pixel_values and back."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# More than any camera a user is likely to have, and 150 MB decoded; larger files are refused before decoding.
MAX_PIXELS = 50_000_000


class ImageError(ValueError):
    """A picture cannot be used; the message names it and says why, `kind` in few words, to be counted by."""

    def __init__(self, message: str, kind: str = "picture unreadable") -> None:
        super().__init__(message)
        self.kind = kind


def load_image(
    source: str | Path | io.BytesIO,
    root: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """Reads a picture as RGB, turned as its EXIF data says; transparency is laid on white.

    Args:
        source: a path, or the bytes of a file in memory.
        root: when given, `source` is relative to this folder and must stay inside it.
        name: what errors call a picture that has no path.

    Raises:
        ImageError: outside root, missing, not a picture, truncated, or more than `max_pixels`.
    """
    if isinstance(source, io.BytesIO):
        path, name = source, name or "a picture in memory"
    else:
        name = str(source)
        try:
            path = _inside(Path(source), root)
            found = path.is_file()
        except (OSError, ValueError) as error:  # a name too long for the file system, a null byte
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{name[:200]!r} is not a path of a picture ({error}).") from error
        if not found:
            raise ImageError(f"There is no picture at {path}.", "picture missing")
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"{name} has {image.width} x {image.height} pixels and at most {max_pixels:,} are read; "
                    "make it smaller first.",
                    "picture too large",
                )
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):  # 16-bit grey, which convert() would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(white, image).convert("RGB")
            return image.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to be read safely: {error}.", "picture too large") from error
    except Exception as error:  # Pillow's decoders meet damaged files with errors of any class
        raise ImageError(f"{name} cannot be read as a picture ({error}); save it again as PNG or JPEG.") from error


def _inside(path: Path, root: str | Path | None) -> Path:
    if root is None:
        return path
    root = Path(root).resolve()
    whole = (root / path).resolve()
    if not whole.is_relative_to(root):
        raise ImageError(
            f"The picture {path} lies outside its folder {root}; name it by a path inside.", "picture outside folder"
        )
    return whole


def to_pixel_values(images: list[Image.Image], size: int) -> Tensor:
    """Pictures -> pixel_values [batch, 3, size, size] in [-1, 1]; bicubic resize, no crop: captions stay true."""
    arrays = [
        np.asarray(
            image.convert("RGB")
            if image.size == (size, size)
            else image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        )
        for image in images
    ]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pil(pixel_values: Tensor) -> list[Image.Image]:
    """pixel_values [batch, 3, height, width] -> pictures, clipped to [-1, 1] and rounded to 256 levels."""
    levels = ((pixel_values.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def picture_grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pastes pictures of one size into rows of `columns`."""
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        grid.paste(picture, (index % columns * width, index // columns * height))
    return grid
