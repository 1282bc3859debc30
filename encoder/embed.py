"""Pooled contrastive vectors of pictures: python -m encoder.embed --model DIR A.png B.png --out features.safetensors

OUT holds `image_features` [pictures, projection_dim], normalised; the pictures' names, in order, are in its metadata.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from encoder.autoencoder import load_autoencoder
from encoder.images import load_image, to_pixel_values
from training.cli import run_cli

BATCH = 32


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="autoencoder folder")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    args = parser.parse_args(argv)
    model = load_autoencoder(args.model)
    features = []
    for start in tqdm(range(0, len(args.pictures), BATCH), desc="pictures"):
        images = [load_image(path) for path in args.pictures[start : start + BATCH]]
        features.append(model.image_features(model.encode(to_pixel_values(images, model.image_size))))
    names = json.dumps([str(path) for path in args.pictures])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"image_features": torch.cat(features).contiguous()}, args.out, metadata={"pictures": names})
    print(f"{len(args.pictures)} vectors of width {features[0].shape[1]} in {args.out}")


if __name__ == "__main__":
    run_cli(main)
