"""Pooled contrastive vectors of pictures: python -m encoder.embed --model DIR A.png B.png --out features.safetensors

DIR is a folder of ours, an encoder or an autoencoder, or a released open_clip checkpoint (a hub id works) with --vae.
OUT holds `image_features` [pictures, projection_dim], normalised; the pictures' names, in order, are in its metadata.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

from encoder.autoencoder import load_encoder
from encoder.commands import add_picture_arguments, read_pixel_values, usable_device
from training.cli import run_cli


@torch.no_grad()
def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_picture_arguments(parser)
    parser.add_argument(
        "--model", required=True, help="folder of an encoder or autoencoder, or hub id of a released one"
    )
    parser.add_argument("--vae", type=Path, default=None, help="folder of the encoder's VAE, where it has none inside")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    args = parser.parse_args(argv)
    device = usable_device(args.device)
    model = load_encoder(args.model, args.vae)
    if model.vae is None:
        raise ValueError(f"The encoder {args.model} has no VAE to read pictures with; name its folder by --vae.")
    model.to(device)
    features = []
    for path in tqdm(args.pictures, desc="pictures", disable=len(args.pictures) < 10):
        pixel_values = read_pixel_values(path, args, model.config.image_size, model.config.patch_size).to(device)
        features.append(F.normalize(model(pixel_values=pixel_values).pooler_output, dim=-1).cpu())
    names = json.dumps([str(path) for path in args.pictures])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"image_features": torch.cat(features).contiguous()}, args.out, metadata={"pictures": names})
    print(f"{len(args.pictures)} vectors of width {features[0].shape[1]} in {args.out}")


if __name__ == "__main__":
    run_cli(main)
