"""Measures how well `Outside` tells the family's own world (test pictures of `shapes`) from photographs.

    python -m demo.evaluate_outside --images data/photographs/images

Photographs are each of the folder's pictures whole, and random square crops of it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.assemble import assembled
from demo.family import CHECKPOINTS
from demo.outside import Outside
from encoder import OpenVision3Autoencoder
from encoder.images import load_image, to_pixel_values
from training.cli import run_cli
from training.shapes import render
from training.shapes.write import scene_at


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Chance that a picture from outside lies farther than one from inside; both are distances [count]."""
    less = (inside[:, None] < outside[None, :]).double() + 0.5 * (inside[:, None] == outside[None, :]).double()
    return less.mean().item()


def crops(picture: Image.Image, count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Square crops of a quarter to the whole of the shorter side, anywhere in the picture."""
    found = []
    for _ in range(count):
        side = int(min(picture.size) * rng.uniform(0.25, 1.0))
        left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
        found.append(picture.crop((left, top, left + side, top + side)))
    return found


@torch.no_grad()
def measure(autoencoder: OpenVision3Autoencoder, outside: Outside, images: Path, count: int) -> dict:
    """AUROC of the distance between `count` scenes of test_iid and about as many crops of the pictures in `images`.

    Raises:
        ValueError: there is no PNG in the folder.
    """
    files = sorted(images.glob("*.png"))
    if not files:
        raise ValueError(f"There is no .png in {images}; write some with python -m scripts.photographs.")
    size, rng = autoencoder.image_size, np.random.default_rng(0)
    photographs: list[Image.Image] = []
    for file in files:
        picture = load_image(file)
        photographs += [picture, *crops(picture, max(1, count // len(files)), rng)]
    shapes = [render(scene_at("test_iid", index), size) for index in range(count)]

    def distances(pictures: list[Image.Image]) -> Tensor:
        parts = [pictures[start : start + 64] for start in range(0, len(pictures), 64)]
        encoded = [autoencoder.encode(to_pixel_values(part, size)) for part in parts]
        return torch.cat([outside.distance(autoencoder.pool(tokens)) for tokens in encoded])

    near, far = distances(shapes), distances(photographs)
    return {
        "auroc": auroc(near, far),
        "shapes": len(near),
        "photographs": len(far),
        "shapes called outside": (near > outside.threshold).double().mean().item(),
        "photographs called outside": (far > outside.threshold).double().mean().item(),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.evaluate_outside",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of .png files from another world")
    parser.add_argument("--count", type=int, default=500, help="test scenes, and about as many crops")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder in the layout of demo.export")
    args = parser.parse_args(argv)
    autoencoder = OpenVision3Autoencoder.from_pretrained(assembled(args.checkpoints) / "autoencoder")
    print(json.dumps(measure(autoencoder, Outside.load(args.checkpoints), args.images, args.count), indent=1))


if __name__ == "__main__":
    run_cli(main)
