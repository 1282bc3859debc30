"""WebDataset tar shards on local disk, read by index.

Samples are files that share a name up to the first dot (`000123.png`, `000123.json`), in order, as webdataset and
img2dataset write them. Reading by index instead of as a stream is what makes shuffling whole-set and resume exact:
the order is the sampler's, and every random choice about a sample comes from `sample_rng`.
"""

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

# Shards kept open at a time; many systems allow a process no more than 1,024 files.
MAX_OPEN = 64


class ShardError(ValueError):
    """A shard cannot be read; the message names the file."""


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of every random choice about one sample: a function of (seed, epoch, index) and nothing else."""
    return np.random.default_rng((seed, epoch, index))


class TarShards:
    """The samples of every `*.tar` below a folder, or of one tar file, as a sequence.

    `shards[i]` is `{"__key__": str, "png": bytes, "json": bytes, ...}`, the extensions being what the shard holds.
    The tar headers are read once, when the object is made; a sample is read with one `pread` per file, so that worker
    processes may share the object. At most `MAX_OPEN` shards are open, those read last.

    Raises:
        ShardError: no shard there, or one that is cut short or damaged: its headers must lead to two blocks of zeros,
            the end of a tar file, and nothing may follow them.
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        self.paths = sorted(root.rglob("*.tar")) if root.is_dir() else [root]
        if not self.paths or not self.paths[0].is_file():
            raise ShardError(f"There are no .tar shards at {root}; name the folder that holds them, or one of them.")
        self._samples: list[tuple[str, dict[str, tuple[int, int, int]]]] = []
        for number, path in enumerate(self.paths):
            self._index(number, path)
        self._files: dict[int, BinaryIO] = {}  # by number of the shard, the longest unread first

    def _index(self, number: int, path: Path) -> None:
        size, previous = path.stat().st_size, None
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    if member.offset_data + member.size > size:
                        raise ShardError(f"{path} is truncated at {member.name}; copy or prepare this shard again.")
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if key != previous:
                        self._samples.append((key, {}))
                        previous = key
                    self._samples[-1][1][extension.lower()] = (number, member.offset_data, member.size)
                end = tar.offset  # tarfile ends in silence at a damaged header, and at the end of a cut file
            _check_end(path, end)
        except tarfile.TarError as error:
            raise ShardError(
                f"{path} is not a readable tar file ({error}); copy or prepare this shard again."
            ) from error

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, str | bytes]:
        key, parts = self._samples[index]
        sample: dict[str, str | bytes] = {"__key__": key}
        for extension, (number, offset, size) in parts.items():
            sample[extension] = os.pread(self._open(number).fileno(), size, offset)
        return sample

    def _open(self, number: int) -> BinaryIO:
        file = self._files.pop(number, None) or open(self.paths[number], "rb", buffering=0)
        self._files[number] = file
        if len(self._files) > MAX_OPEN:
            del self._files[next(iter(self._files))]  # the last reference closes the file
        return file

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}


def _check_end(path: Path, offset: int) -> None:
    """Refuses a tar file that has anything but its end at `offset`: two blocks of zeros, then zeros alone."""
    with open(path, "rb") as file:
        file.seek(offset)
        last = file.read(2 * tarfile.BLOCKSIZE)
        if len(last) < 2 * tarfile.BLOCKSIZE:
            raise ShardError(f"{path} is truncated: it has no end; copy or prepare this shard again.")
        while last:
            if last.strip(b"\0"):
                raise ShardError(f"{path} is damaged behind byte {offset}; copy or prepare this shard again.")
            last = file.read(1 << 20)


def write_shards(folder: str | Path, samples: Iterable[dict[str, str | bytes]], per_shard: int = 5000) -> int:
    """Writes `00000.tar`, `00001.tar`, ... with `per_shard` samples each; returns how many samples.

    A sample is `{"__key__": str, extension: bytes, ...}`. The same samples give the same bytes: no dates, no owners.
    A shard appears under its name only when it is whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count, tar, partial, path = 0, None, None, None

    def close() -> None:
        if tar is not None:
            tar.close()
            partial.rename(path)

    for sample in samples:
        if count % per_shard == 0:
            close()
            path = folder / f"{count // per_shard:05d}.tar"
            partial = path.with_suffix(".partial")
            tar = tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT)
        for extension, data in sample.items():
            if extension == "__key__":
                continue
            member = tarfile.TarInfo(f"{sample['__key__']}.{extension}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        count += 1
    close()
    return count
