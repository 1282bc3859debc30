"""Reconstructs pictures from their tokens: python -m encoder.reconstruct --model DIR A.png B.png --out FOLDER

DIR is an autoencoder's folder; encoder.train_decoder makes one of a released encoder. Each result lies beside its
original in one picture, FOLDER/NAME.png: left what the encoder saw, right what it kept.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from encoder.autoencoder import OpenVision3Autoencoder, load_autoencoder
from encoder.commands import add_picture_arguments, read_pixel_values, usable_device
from encoder.images import picture_grid, to_pil
from encoder.metrics import psnr
from training.cli import run_cli


def reconstruct(model: OpenVision3Autoencoder, pixel_values: Tensor) -> Tensor:
    """pixel_values [batch, 3, height, width] in [-1, 1] -> what the model makes of their tokens, clipped to [-1, 1]."""
    grid = (pixel_values.shape[2] // model.patch_size, pixel_values.shape[3] // model.patch_size)
    return model.decode(model.encode(pixel_values), grid).clamp(-1, 1)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.reconstruct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_picture_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="autoencoder folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    device = usable_device(args.device)
    model = load_autoencoder(args.model).to(device)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in tqdm(args.pictures, disable=len(args.pictures) < 10):
        pixel_values = read_pixel_values(path, args, model.image_size, model.patch_size).to(device)
        decoded = reconstruct(model, pixel_values)
        picture_grid(to_pil(torch.cat([pixel_values, decoded])), columns=2).save(args.out / f"{path.stem}.png")
        print(f"{path}: {psnr(decoded, pixel_values).item():.1f} dB")


if __name__ == "__main__":
    run_cli(main)
