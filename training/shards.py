"""WebDataset tar shards on local disk.

Samples are files that share a name up to the first dot (`000123.png`, `000123.json`), in order, as webdataset and
img2dataset write them.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class ShardError(ValueError):
    """A shard or a sample of it cannot be read; the message names the file."""


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of every random choice about one sample: a function of (seed, epoch, index) and nothing else."""
    return np.random.default_rng((seed, epoch, index))


def read_tar(path: str | Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The samples of a tar file from byte `offset` on, each with the byte behind it, where reading may begin again.

    A sample is `{"__key__": str, "png": bytes, "json": bytes, ...}`, the extensions being what the shard holds. Links,
    folders and devices are passed over.

    Raises:
        ShardError: the file is cut short or damaged: its headers must lead to two blocks of zeros, the end of a tar
            file, and nothing may follow them. What comes before the damage has been yielded.
    """
    try:
        with open(path, "rb") as file:
            size, key, sample = os.fstat(file.fileno()).st_size, None, {}
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # tarfile keeps all it has seen
                    if not member.isfile():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    new = f"{folder}/{stem}" if folder else stem
                    if new != key:
                        if sample:
                            yield member.offset, sample
                        key, sample = new, {"__key__": new}
                    if member.offset_data + member.size > size:
                        raise ShardError(f"{path} is truncated at {member.name}; copy or prepare this shard again.")
                    sample[extension.lower()] = os.pread(file.fileno(), member.size, member.offset_data)
                if sample:
                    yield tar.offset, sample
                _check_end(path, file, tar.offset)  # tarfile ends in silence at damage and at the end of a cut file
    except tarfile.TarError as error:
        raise ShardError(f"{path} is not a readable tar file ({error}); copy or prepare this shard again.") from error


def _check_end(path: str | Path, file: BinaryIO, offset: int) -> None:
    """Refuses a tar file that has anything but its end at `offset`: two blocks of zeros, then zeros alone."""
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
