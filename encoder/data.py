"""Image-text pairs: a stream of them from any source, and what a training draws from their latent cache."""

import io
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Sampler

from encoder.cache import LatentCache
from encoder.images import ImageError, load_image
from training.shards import ShardError, sample_rng
from training.sources import HUB, Place, open_source

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Members of a tar file's sample that hold the picture; columns of a row that hold it, or its path; and the captions.
PICTURES = ("png", "jpg", "jpeg", "webp")
COLUMNS = ("image", "file_name", "filepath", "path", *PICTURES)
CAPTIONS = ("captions", "caption", "text", "title", "txt")
# So many samples that cannot be used are logged with their reason; of the rest only the number.
LOGGED = 20


class CaptionError(ShardError):
    """A sample has no caption, or one that cannot be read; the message names its key."""


@dataclass
class Pair:
    """One picture with its captions. Pictures with the same `description` count as the same in retrieval.

    A picture without any caption has a `label`, the number of its class.
    """

    key: str
    image: Image.Image
    captions: list[str]
    description: str
    label: int | None = None


def sample_name(sample: dict[str, Any]) -> str:
    """What errors call a sample: its file and key."""
    return f"{sample['__url__']}: sample {sample['__key__']}"


def read_texts(sample: dict[str, Any]) -> tuple[list[str], str, int | None]:
    """Captions, description and label of a sample: of its row or `json`, its `txt` and its `cls`.

    Row or json hold a text or a list of texts by one of the names in CAPTIONS; they may hold "description" and "label".

    Raises:
        CaptionError: there is neither caption nor label, or they cannot be read; the sentence begins with file and key
            of the sample.
    """
    name = sample_name(sample)
    try:
        values = sample["row"] if "row" in sample else json.loads(sample.get("json", b"{}"))
        captions = next((values[field] for field in CAPTIONS if values.get(field)), None)
        if captions is None:
            captions = sample.get("txt", b"").decode().strip()
        label = values.get("label", sample.get("cls"))
        label = None if label in (None, "") else int(np.int64(int(label)))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CaptionError(f"{name}: its captions or label cannot be read ({error}); mend or drop it.") from error
    captions = captions if isinstance(captions, list) else [captions]
    if not all(isinstance(caption, str) for caption in captions):
        raise CaptionError(f"{name}: its captions are {str(captions)[:80]!r}; each must be a text.")
    if captions == [""] and label is not None:
        captions = []
    if not all(caption.strip() for caption in captions):
        raise CaptionError(
            f"{name} has no caption or an empty one; give it a .txt, or 'captions' in its .json or row, or the number "
            "of its class in a .cls or as 'label'."
        )
    return captions, str(values.get("description") or (captions[0] if captions else f"class {label}")), label


def read_picture(sample: dict[str, Any]) -> Image.Image:
    """The picture of a sample as RGB: of one of its members, or the bytes or the path in one of a row's columns.

    Paths begin in the folder of the row's file and must stay inside it; in data sets of the hub they are refused.

    Raises:
        ImageError: it has none, or one that cannot be read; the sentence begins with file and key of the sample.
    """
    name = sample_name(sample)
    if "row" not in sample:
        data = next((sample[extension] for extension in PICTURES if extension in sample), None)
        if data is None:
            raise ImageError(f"{name} has no picture; its members need one of {', '.join(PICTURES)}.")
        return load_image(io.BytesIO(data), name=name)
    value = next((sample["row"][column] for column in COLUMNS if sample["row"].get(column)), None)
    if isinstance(value, dict):  # as `datasets` stores pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return load_image(io.BytesIO(value), name=name)
    if not isinstance(value, str) or sample["__url__"].startswith(HUB):
        raise ImageError(f"{name} has no picture; its row needs one as {', '.join(COLUMNS)}: bytes, or a path.")
    try:
        return load_image(value, root=Path(sample["__url__"]).parent)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def read_pair(sample: dict[str, Any]) -> Pair:
    """A sample as a Pair; see `read_texts` and `read_picture`."""
    captions, description, label = read_texts(sample)
    return Pair(sample["__key__"], read_picture(sample), captions, description, label)


class ImageTextStream:
    """The pairs of a source, in its order, without a look at it first.

    Args:
        locations: see `training.sources.open_source`.
        on_error: "stop": a sample that cannot be used ends the run with its sentence; "skip": it is left out, counted
            in `skipped` (shards, captions, pictures) and, the first few of them, logged.

    Attributes:
        place: behind what has been read so far; `pairs` goes on from there.

    Raises:
        ShardError: there is no such source.
    """

    def __init__(self, *locations: str | Path, on_error: Literal["skip", "stop"] = "stop") -> None:
        self.on_error = on_error
        self.source = open_source(*locations)
        self.skipped: Counter[str] = Counter()
        self.place: Place | None = None

    def pairs(self, reader: int = 0, readers: int = 1, place: Place | None = None) -> Iterator[Pair]:
        """The pairs of one of several readers, from a `place` on that an earlier stream came to.

        Raises:
            ShardError, CaptionError, ImageError: with on_error="stop", the first thing that cannot be used.
        """
        for behind, sample in self.source.samples(reader, readers, place):
            self.place = behind
            pair = self.use(sample, read_pair)
            if pair is not None:
                yield pair

    def use(self, sample: dict[str, Any] | ShardError, read: Callable[[dict[str, Any]], T]) -> T | None:
        """What `read` makes of a sample of the source; None where it is left out. Raises as `pairs`."""
        try:
            if isinstance(sample, ShardError):
                raise sample
            return read(sample)
        except (ShardError, ImageError) as error:
            if self.on_error == "stop":
                raise
            kind = {CaptionError: "captions", ImageError: "pictures"}.get(type(error), "shards")
            self.skipped[kind] += 1
            if self.skipped.total() <= LOGGED:
                logger.warning("Left out: %s", error)
            return None


def choose_caption(captions: list[str], rng: np.random.Generator, last_caption_probability: float) -> str:
    """The last caption with that probability (in `shapes` it is the fullest), else any with equal chance.

    Raises:
        ValueError: there is none.
    """
    if not captions:
        raise ValueError(
            "A picture of the latent cache has a class but no caption, which this training needs: cache pictures with "
            "captions."
        )
    choice = int(rng.integers(len(captions)))
    return captions[-1 if rng.random() < last_caption_probability else choice]


class CachedPairs(Dataset):
    """Cached latents with one caption of each picture, drawn anew every epoch.

    Args:
        cache: whose pictures all have captions.
        last_caption_probability: see `choose_caption`.

    Items are {"latents": float32 [16, height, width], "pixels": uint8 [3, 8 height, 8 width], "caption": str,
    "key": str}.
    """

    def __init__(self, cache: LatentCache, seed: int, last_caption_probability: float = 0.0) -> None:
        self.cache, self.seed, self.epoch = cache, seed, 0
        self.last_caption_probability = last_caption_probability

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> dict:
        captions = self.cache.captions[index]
        rng = sample_rng(self.seed, self.epoch, index)
        return {
            "latents": self.cache.latents[index].float(),
            "pixels": self.cache.pixels[index],
            "caption": choose_caption(captions, rng, self.last_caption_probability),
            "key": self.cache.keys[index],
        }


class DistinctSampler(Sampler[int]):
    """A new order every epoch in which no `batch_size` neighbours (one global batch) share a description.

    Two pictures of the same description would be each other's false negatives. A picture that finds its description
    taken waits for the next batch; one that still waits at the end of the epoch is left out of it.

    Raises:
        ValueError: fewer different descriptions than a batch needs.
    """

    def __init__(self, descriptions: Sequence[str] | np.ndarray, batch_size: int, seed: int) -> None:
        different, self.labels = np.unique(descriptions, return_inverse=True)
        if len(different) < batch_size:
            raise ValueError(
                f"A batch of {batch_size} needs as many different descriptions and there are {len(different)}; "
                "lower per_device_train_batch_size or write more pictures."
            )
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        fresh: Iterator[int] = iter(())
        waiting: dict[int, deque[int]] = {}  # by label, the longest waiting label first
        for _ in range(len(self) // self.batch_size):
            early = list(waiting)[: self.batch_size]
            for label in early:
                yield waiting[label].popleft()
                if not waiting[label]:
                    del waiting[label]
            taken, size = set(early), len(early)
            while size < self.batch_size:
                index = next(fresh, None)
                if index is None:
                    fresh = map(int, rng.permutation(len(self.labels)))
                    continue
                label = int(self.labels[index])
                if label in taken:
                    waiting.setdefault(label, deque()).append(index)
                else:
                    taken.add(label)
                    size += 1
                    yield index
