"""Encodes image-text data through the frozen VAE once, for every training that follows.

    python -m encoder.cache_latents --shards data/tiny/train --vae demo/checkpoints/vae --image-size 64 --out runs/cache
    torchrun --nproc-per-node 8 -m encoder.cache_latents ...           # each process writes shards of its own

leaves in OUT safetensors shards of float16 latents, uint8 pixels and texts (encoder/cache.py). Killed and started again
with the same command, it goes on behind the last whole shard. A cache of another VAE or preprocessing is refused
when it is read.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from tqdm import tqdm

from encoder.cache import CacheKey, part_name, write_index, write_shard
from encoder.data import ImageTextStream, Pair
from encoder.vae import DOWNSAMPLING, LATENT_CHANNELS, encode, load_vae
from encoder.views import Views
from training.cli import run_cli
from training.shards import ShardError
from training.sources import Place

SHARD_SIZE, BATCH_SIZE = 2048, 64


def cache_latents(
    stream: ImageTextStream,
    vae: AutoencoderKL,
    image_size: int,
    out: Path,
    *,
    views: Views = Views(),  # noqa: B008  frozen
    process: int = 0,
    processes: int = 1,
    shard_size: int = SHARD_SIZE,
) -> tuple[int, Counter[str]]:
    """Writes this process's share of the stream into `out`; what lies there whole already is kept.

    Args:
        vae: on the device that encodes.
        image_size: side in pixels.
        shard_size: pictures a shard; memory holds one shard.

    Returns:
        How many pictures the process has cached, and what it has left out (`ImageTextStream.skipped`), whether now or
        before it was killed.

    Raises:
        ShardError: `out` holds shards of another VAE, preprocessing, source, shard size or number of processes, or a
            picture's latents do not fit float16.
    """
    key = CacheKey.of(vae, image_size, views)
    same = {**key.dump(), "source": stream.source.fingerprint(), "shard_size": str(shard_size)}
    out.mkdir(parents=True, exist_ok=True)
    stream.place, pictures = _written(out, process, processes, same, stream.skipped)
    vae.eval()
    progress = tqdm(desc="pictures", initial=sum(pictures), mininterval=2, disable=process > 0)
    pairs = stream.pairs(process, processes, stream.place)
    while True:
        shard = _Shard(shard_size, views, image_size)
        shard.fill(pairs, vae, progress)
        if not shard.texts:
            break
        metadata = {**same, "place": json.dumps(stream.place), "skipped": json.dumps(stream.skipped)}
        path = out / f"{part_name(process, processes)}-{len(pictures):05d}.safetensors"
        rows = len(shard.texts) * views.count
        write_shard(path, shard.latents[:rows], shard.pixels[:rows], shard.texts, metadata)
        pictures.append(len(shard.texts))
    write_index(out, process, processes, key, pictures)
    return sum(pictures), stream.skipped


class _Shard:
    """The tensors and texts of one shard while it is made."""

    def __init__(self, size: int, views: Views, image_size: int) -> None:
        side = image_size // DOWNSAMPLING
        self.size, self.views, self.image_size = size, views, image_size
        self.latents = torch.empty(size * views.count, LATENT_CHANNELS, side, side, dtype=torch.float16)
        self.pixels = torch.empty(size * views.count, 3, image_size, image_size, dtype=torch.uint8)
        self.texts: list[dict] = []

    def fill(self, pairs: Iterator[Pair], vae: AutoencoderKL, progress: tqdm) -> None:
        """Takes pairs until the shard is full or none is left."""
        count = self.views.count
        while batch := list(islice(pairs, min(max(1, BATCH_SIZE // count), self.size - len(self.texts)))):
            pixels = torch.cat([self.views.pixels(pair.image, pair.key, self.image_size) for pair in batch])
            latents = encode(vae, (pixels.float() / 127.5 - 1).to(vae.device)).half().cpu()
            for pair, rows in zip(batch, latents.split(count), strict=True):
                if not torch.isfinite(rows).all():
                    raise ShardError(f"The latents of picture {pair.key} do not fit float16: leave it out.")
            start, end = count * len(self.texts), count * (len(self.texts) + len(batch))
            self.pixels[start:end], self.latents[start:end] = pixels, latents
            for pair in batch:
                texts = {"captions": pair.captions, "description": pair.description, "label": pair.label}
                self.texts.append({"key": pair.key, **texts})
            progress.update(len(batch))


def _written(
    out: Path, process: int, processes: int, same: dict[str, str], skipped: Counter[str]
) -> tuple[Place | None, list[int]]:
    """Where to go on in the stream, and the number of pictures in each shard that lies in `out`; updates `skipped`."""
    for path in out.glob("*-of-*.safetensors"):
        if int(path.name.split("-")[2]) != processes:
            raise ShardError(
                f"{out} holds {path.name}, a shard of another number of processes than {processes}: go on with as many "
                "as it names, or choose another --out."
            )
    place, pictures = None, []
    while (path := out / f"{part_name(process, processes)}-{len(pictures):05d}.safetensors").is_file():
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            pictures.append(file.get_slice("labels").get_shape()[0])
        for name, value in same.items():
            if metadata[name] != value:
                raise ShardError(
                    f"{path} was made with {name} {metadata[name]} and would be gone on with {value}: choose another "
                    "--out, or remove this one."
                )
        place = json.loads(metadata["place"])
        skipped.clear()
        skipped.update(json.loads(metadata["skipped"]))
    return place, pictures


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.cache_latents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shards", required=True,
        help="folder of .tar shards (png or jpg, and json or txt, or cls: a class number), of .parquet files or of "
        ".csv, .tsv or .jsonl tables with pictures beside them; or hf://NAME, streamed from the Hugging Face hub",
    )  # fmt: skip
    parser.add_argument("--vae", type=Path, required=True, help="folder of a diffusers AutoencoderKL")
    parser.add_argument("--image-size", type=int, required=True, help="side in pixels, a multiple of 16")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=1, help="views of every picture, each a row of the cache")
    parser.add_argument(
        "--crop", choices=("none", "centre", "random"), default="none",
        help="none: the whole picture; centre: the middle square, as ADM; random: the whole, then parts of 40 to 100%%",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="every second view is mirrored")
    parser.add_argument("--jitter", type=float, default=0.0, help="of brightness, contrast and saturation in all views "
                        "but the first, 0 to 1 (default: 0)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the random parts")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at what cannot be used")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="pictures a shard, held in memory")
    parser.add_argument("--process", type=int, default=int(os.environ.get("RANK", 0)), help="torchrun sets it")
    parser.add_argument("--processes", type=int, default=int(os.environ.get("WORLD_SIZE", 1)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.image_size < 16 or args.image_size % 16:
        parser.error(f"--image-size is {args.image_size} and must be a multiple of 16")
    if not 0 <= args.process < args.processes:
        parser.error(f"--process is {args.process} and must lie between 0 and --processes - 1")
    device = args.device
    if device == "cuda":  # more processes than GPUs, for decoding pictures takes longer than encoding them, share them
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', args.process)) % torch.cuda.device_count()}"
    count, skipped = cache_latents(
        ImageTextStream(args.shards, on_error=args.on_error),
        load_vae(args.vae).to(device),
        args.image_size,
        args.out,
        views=Views(args.views, args.crop, args.flip, args.seed, args.jitter),
        process=args.process,
        processes=args.processes,
        shard_size=args.shard_size,
    )
    left_out = ", ".join(f"{number} {kind}" for kind, number in sorted(skipped.items())) or "nothing"
    print(f"{count} pictures cached in {args.out}; left out: {left_out}")


if __name__ == "__main__":
    run_cli(main)
