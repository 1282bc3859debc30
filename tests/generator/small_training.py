"""What a small training of the generator needs: a latent cache of random numbers, and processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from encoder.cache import CacheKey, part_name, write_index, write_shard

COUNT = 32
ROOT = Path(__file__).parents[2]


def write_cache(folder: Path, key: CacheKey) -> None:
    """A cache of random latents, whose pictures have captions and, of four, a class."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(COUNT, 16, 8, 8, generator=generator).half()
    texts = [
        {"key": f"{index:03d}", "captions": ["a red circle", f"a blue square {'left ' * (index % 3)}"],
         "description": str(index), "label": index % 4}
        for index in range(COUNT)
    ]  # fmt: skip
    shard = folder / f"{part_name(0, 1)}-00000.safetensors"
    write_shard(shard, latents, torch.zeros(COUNT, 3, 64, 64, dtype=torch.uint8), texts, key.dump())
    write_index(folder, 0, 1, key, [COUNT])


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs this Python on this copy of the packages, with environment variables of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600, env=environment)
