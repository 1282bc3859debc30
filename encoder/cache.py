"""The latent cache: VAE latents, pixels and texts of many pictures in shards on disk, read by memory map.

A folder holds, for process I of N that wrote it,
    I-of-N-00000.safetensors ...   latents float16 [rows, 16, h, w] and pixels uint8 [rows, 3, 8h, 8w], a row a view,
                                   the views of a picture behind each other; label and a hash of the description int64
                                   [pictures]; texts, a JSON row a picture, as UTF-8 bytes, and where each ends
    I-of-N.json                    the number of pictures in each shard, written last
and each file what the cache depends on: the hashes of VAE and preprocessing, the size and the views.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder.views import Views
from training.shards import ShardError

NO_LABEL = -1
AGAIN = "make it again with python -m encoder.cache_latents"


def vae_hash(vae: AutoencoderKL) -> str:
    """A short hash of the VAE's weights and scaling factor: what its latents depend on."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class CacheKey:
    """What the numbers in a cache depend on, apart from the pictures."""

    vae: str
    preprocessing: str
    image_size: int
    views: Views

    @classmethod
    def of(cls, vae: AutoencoderKL, image_size: int, views: Views) -> "CacheKey":
        """The key of a cache that `vae` would make here and now."""
        return cls(vae_hash(vae), views.fingerprint(image_size), image_size, views)

    def dump(self) -> dict[str, str]:
        """As the metadata of a file."""
        return {
            "vae": self.vae,
            "preprocessing": self.preprocessing,
            "image_size": str(self.image_size),
            "views": json.dumps(asdict(self.views), sort_keys=True),
        }

    @classmethod
    def load(cls, values: dict[str, str]) -> "CacheKey":
        """The inverse of `dump`; other values are passed over."""
        views = Views(**json.loads(values["views"]))
        return cls(values["vae"], values["preprocessing"], int(values["image_size"]), views)


def part_name(process: int, processes: int) -> str:
    """What the files of a process begin with."""
    return f"{process:05d}-of-{processes:05d}"


def write_shard(
    path: Path, latents: Tensor, pixels: Tensor, texts: list[dict[str, Any]], metadata: dict[str, str]
) -> None:
    """Writes one shard; it appears under its name only when it is whole.

    Args:
        latents, pixels: see the head of this file.
        texts: a picture each: {"key": str, "captions": list of str, "description": str, "label": int or None}.
    """
    rows = [json.dumps({"key": row["key"], "captions": row["captions"]}).encode() for row in texts]
    hashes = [hashlib.blake2b(row["description"].encode(), digest_size=8).digest() for row in texts]
    tensors = {
        "latents": latents,
        "pixels": pixels,
        "labels": torch.tensor([NO_LABEL if row["label"] is None else row["label"] for row in texts]),
        "descriptions": torch.frombuffer(bytearray(b"".join(hashes)), dtype=torch.int64),
        "texts": torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8),
        "text_ends": torch.tensor(np.cumsum([len(row) for row in rows])),
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    partial.rename(path)


def write_index(folder: Path, process: int, processes: int, key: CacheKey, pictures: list[int]) -> None:
    """Says that a process has written all its shards: `pictures` in each."""
    path = folder / f"{part_name(process, processes)}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key.dump(), "pictures": pictures}))
    partial.rename(path)


class LatentCache:
    """One or more folders of encoder.cache_latents as sequences of rows, a row a view of a picture.

    Nothing is read before it is asked for. Memory does not grow with the number of pictures, but for `labels` and
    `descriptions`: 8 bytes a row each. Worker processes may share the object.

    Attributes:
        latents: Rows of float16 [16, image_size/8, image_size/8].
        pixels: Rows of uint8 [3, image_size, image_size].
        keys, captions: Texts; a str and a list of str a row.
        image_size: side of the pictures in pixels.

    Raises:
        ShardError: a folder holds no whole cache, the preprocessing has changed since it was made, another VAE than
            `vae` made it, or the folders differ in size.
    """

    def __init__(self, folders: Sequence[str | Path], vae: AutoencoderKL | None = None) -> None:
        own = None if vae is None else vae_hash(vae)
        self._shards: list[tuple[Path, CacheKey]] = []
        counts: list[int] = []
        sizes: dict[int, Path] = {}
        for folder in map(Path, folders):
            index = _read_index(folder)
            key = index[0][0]
            if key.preprocessing != key.views.fingerprint(key.image_size):
                raise ShardError(
                    f"The pictures of the latent cache {folder} were prepared by another version of encoder/images.py, "
                    f"encoder/views.py or Pillow; {AGAIN}."
                )
            if own not in (None, key.vae):
                raise ShardError(
                    f"The latent cache {folder} was made by VAE {key.vae}, not by this one ({own}); {AGAIN}."
                )
            sizes[key.image_size] = folder
            for process, (_, pictures) in enumerate(index):
                for number, count in enumerate(pictures):
                    path = folder / f"{part_name(process, len(index))}-{number:05d}.safetensors"
                    self._shards.append((path, key))
                    counts.append(count * key.views.count)
        if len(sizes) > 1:
            small, large = min(sizes), max(sizes)
            raise ShardError(
                f"The latent caches {sizes[small]} and {sizes[large]} hold pictures of {small} and {large} px; "
                "give caches of one size."
            )
        self.image_size = next(iter(sizes))
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._files: dict[int, Any] = {}
        self.latents, self.pixels = Rows(self, "latents"), Rows(self, "pixels")
        self.keys, self.captions = Texts(self, "key"), Texts(self, "captions")

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def labels(self) -> np.ndarray:
        """The class of each row, int64; NO_LABEL where it has none."""
        return self._column("labels")

    @property
    def descriptions(self) -> np.ndarray:
        """A number for each row's description, int64: equal ones count as the same picture in retrieval."""
        return self._column("descriptions")

    def _column(self, name: str) -> np.ndarray:
        columns = [
            np.repeat(self.open(number).get_tensor(name).numpy(), key.views.count)
            for number, (_, key) in enumerate(self._shards)
        ]
        return np.concatenate(columns)

    def locate(self, row: int) -> tuple[int, int]:
        """The shard's number and the row inside it."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"The latent cache has {len(self)} rows and no row {row}.")
        row %= len(self)
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def views(self, number: int) -> int:
        """How many views of each picture the shard has."""
        return self._shards[number][1].views.count

    def open(self, number: int) -> Any:
        """A shard, mapped into memory; none is opened twice. (The map keeps no file open.)"""
        if number not in self._files:
            path, key = self._shards[number]
            if not path.is_file():
                raise ShardError(f"The shard {path} of the latent cache is gone; {AGAIN}.")
            file = safe_open(path, framework="pt")
            if CacheKey.load(file.metadata()) != key:
                raise ShardError(f"The shard {path} was made otherwise than the rest of its latent cache; {AGAIN}.")
            self._files[number] = file
        return self._files[number]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}


class Rows:
    """One tensor of a cache: `rows[3]`, `rows[:16]` and `rows[numbers]` read these rows and no others."""

    def __init__(self, cache: LatentCache, name: str) -> None:
        self._cache, self._name = cache, name

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self[0].shape

    def __getitem__(self, rows: int | slice | Tensor | Sequence[int]) -> Tensor:
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        if hasattr(rows, "__len__"):
            return torch.stack([self[int(row)] for row in rows])
        number, inside = self._cache.locate(int(rows))
        return self._cache.open(number).get_slice(self._name)[inside]

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, up to `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))


class Texts(Sequence):
    """One text of each row of a cache, read when it is asked for; a list of them for a slice."""

    def __init__(self, cache: LatentCache, name: str) -> None:
        self._cache, self._name = cache, name

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        number, inside = self._cache.locate(int(row))
        file, picture = self._cache.open(number), inside // self._cache.views(number)
        ends = file.get_slice("text_ends")[max(picture - 1, 0) : picture + 1].tolist()
        start, end = (0, *ends)[-2:]
        return json.loads(file.get_slice("texts")[start:end].numpy().tobytes())[self._name]


def _read_index(folder: Path) -> list[tuple[CacheKey, list[int]]]:
    """What each process wrote into a cache, in order of the processes: the key, and the pictures of each shard."""
    names = sorted(path.name for path in folder.glob("*-of-*.*")) if folder.is_dir() else []
    if not names:
        raise ShardError(f"There is no latent cache at {folder}; {AGAIN.replace('it again', 'it')}.")
    processes = int(names[0].split("-of-")[1][:5])
    paths = [folder / f"{part_name(process, processes)}.json" for process in range(processes)]
    if missing := [process for process, path in enumerate(paths) if not path.is_file()]:
        raise ShardError(
            f"The latent cache {folder} is not finished (process {missing[0]} of {processes}); start the same command "
            "again, it goes on where it was."
        )
    parts = [json.loads(path.read_text()) for path in paths]
    index = [(CacheKey.load(part["key"]), part["pictures"]) for part in parts]
    if len({key for key, _ in index}) > 1:
        raise ShardError(f"The processes that made the latent cache {folder} differ in VAE or preprocessing; {AGAIN}.")
    if not any(pictures for _, pictures in index):
        raise ShardError(f"The latent cache {folder} holds no picture; {AGAIN} from shards that have some.")
    return index
