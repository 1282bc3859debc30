"""Encodes image-text shards through the frozen VAE once, for every training that follows.

    python -m encoder.cache_latents --shards data/tiny/train --vae demo/checkpoints/vae --image-size 64 --out runs/cache

leaves in OUT: latents.safetensors (float16 latents, uint8 pixels; the hashes of VAE and preprocessing in its metadata)
and texts.json (keys, captions, descriptions). A cache made by another VAE or preprocessing is refused when it is read.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from encoder.data import CACHE_FILE, TEXTS_FILE, ImageTextShards, preprocessing_hash, vae_hash
from encoder.images import to_pixel_values
from encoder.vae import encode, load_vae
from training.cli import run_cli


def cache_latents(
    shards: ImageTextShards, vae: AutoencoderKL, image_size: int, out: Path, batch_size: int = 64
) -> None:
    """Writes latents float16 [N, 16, image_size/8, image_size/8] and pixels uint8 [N, 3, image_size, image_size]."""
    latents: list[Tensor] = []
    pixels: list[Tensor] = []
    texts: dict[str, list] = {"keys": [], "captions": [], "descriptions": []}
    vae.eval()
    for start in tqdm(range(0, len(shards), batch_size), desc="latents", mininterval=2):
        rows = [shards[index] for index in range(start, min(start + batch_size, len(shards)))]
        pixel_values = to_pixel_values([row.image for row in rows], image_size)
        latents.append(encode(vae, pixel_values).half())
        pixels.append(((pixel_values + 1) * 127.5).round().to(torch.uint8))
        for row in rows:
            texts["keys"].append(row.key)
            texts["captions"].append(row.captions)
            texts["descriptions"].append(row.description)
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"vae": vae_hash(vae), "preprocessing": preprocessing_hash(image_size), "image_size": str(image_size)}
    save_file(
        {"latents": torch.cat(latents).contiguous(), "pixels": torch.cat(pixels).contiguous()},
        out / CACHE_FILE,
        metadata=metadata,
    )
    (out / TEXTS_FILE).write_text(json.dumps(texts))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.cache_latents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder of .tar shards (png or jpg, and json or txt)"
    )
    parser.add_argument("--vae", type=Path, required=True, help="folder of a diffusers AutoencoderKL")
    parser.add_argument("--image-size", type=int, required=True, help="side in pixels, a multiple of 16")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=None, help="only the first so many pictures")
    args = parser.parse_args(argv)
    shards = ImageTextShards(args.shards, count=args.count)
    cache_latents(shards, load_vae(args.vae), args.image_size, args.out)
    print(f"{len(shards)} pictures cached in {args.out}")


if __name__ == "__main__":
    run_cli(main)
