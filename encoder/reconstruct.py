"""Reconstructs pictures from their tokens: python -m encoder.reconstruct --model DIR A.png B.png --out FOLDER

Each result lies beside its original in one picture, FOLDER/NAME.png: left what the encoder saw, right what it kept.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from encoder.autoencoder import OpenVision3Autoencoder, load_autoencoder
from encoder.images import load_image, picture_grid, to_pil, to_pixel_values
from encoder.metrics import psnr
from training.cli import run_cli


def reconstruct(model: OpenVision3Autoencoder, path: Path, out: Path, image_size: int) -> float:
    """Writes the pair and returns its PSNR in dB."""
    pixel_values = to_pixel_values([load_image(path)], image_size)
    decoded = model.decode(model.encode(pixel_values))
    picture_grid(to_pil(pixel_values) + to_pil(decoded), columns=2).save(out / f"{path.stem}.png")
    return psnr(decoded.clamp(-1, 1), pixel_values).item()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.reconstruct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="autoencoder folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default: the model's own")
    args = parser.parse_args(argv)
    model = load_autoencoder(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in tqdm(args.pictures, disable=len(args.pictures) < 10):
        print(f"{path}: {reconstruct(model, path, args.out, args.image_size or model.image_size):.1f} dB")


if __name__ == "__main__":
    run_cli(main)
