"""Measures a VAE on `shapes` beside the best linear autoencoder of the same size.

    python -m encoder.evaluate_vae --vae runs/tiny_vae --count 300

The linear one is a PCA of 8 x 8 x 3 patches with 16 components, fitted to training pictures: what an f8,
16-channel code gives without learning anything but second moments.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from encoder.commands import add_device_argument, usable_device
from encoder.evaluate import masked_psnr
from encoder.images import to_pil, to_pixel_values
from encoder.linear_code import LinearCode
from encoder.metrics import psnr
from encoder.vae import decode, encode, load_vae
from training.cli import run_cli
from training.shapes import ShapesChecker, foreground, render
from training.shapes.write import scene_at
from training.statistics import share


def pictures(split: str, count: int, size: int) -> Tensor:
    """pixel_values [count, 3, size, size] of the split's first scenes."""
    return to_pixel_values([render(scene_at(split, index), size) for index in range(count)], size)


@torch.no_grad()
def evaluate_vae(vae: AutoencoderKL, split: str, count: int, size: int) -> dict:
    """PSNR whole and on the foreground, and the share of reconstructions that ShapesChecker finds right."""
    target = pictures(split, count, size)
    scenes = [scene_at(split, index) for index in range(count)]
    mask = torch.from_numpy(np.stack([foreground(scene, size) for scene in scenes])).float()
    ours = torch.cat([decode(vae, encode(vae, part.to(vae.device))).cpu() for part in target.split(32)])
    code = LinearCode.fit(pictures("train", 400, size))
    linear = code.decode(code.encode(target))
    checker = ShapesChecker()
    report = {}
    for name, candidate in (("vae", ours), ("linear", linear)):
        right = sum(
            checker.check(np.asarray(picture), scene).all_right
            for picture, scene in zip(to_pil(candidate), scenes, strict=True)
        )
        report[name] = {
            "psnr": psnr(candidate.clamp(-1, 1), target).mean().item(),
            "foreground_psnr": masked_psnr(candidate, target, mask).mean().item(),
            "checker": share(right, count),
        }
    return report


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.evaluate_vae", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, required=True, help="folder of a diffusers AutoencoderKL")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides in pixels")
    parser.add_argument("--splits", nargs="+", default=["test_iid", "test_combo"])
    parser.add_argument("--count", type=int, default=300, help="pictures a split")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    vae = load_vae(args.vae).to(usable_device(args.device))
    print(
        json.dumps(
            {
                f"{split} {size} px": evaluate_vae(vae, split, args.count, size)
                for size in args.sizes
                for split in args.splits
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    run_cli(main)
