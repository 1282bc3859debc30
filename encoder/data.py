"""Image-text pairs: shards of pictures with captions, and their cache of VAE latents."""

import hashlib
import io
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from torch.utils.data import Dataset, Sampler

from encoder.images import load_image, to_pixel_values
from training.shards import ShardError, TarShards, sample_rng

CACHE_FILE, TEXTS_FILE = "latents.safetensors", "texts.json"
PICTURES = ("png", "jpg", "jpeg", "webp")


@dataclass
class Pair:
    """One picture with its captions. Pictures with the same `description` count as the same in retrieval."""

    key: str
    image: Image.Image
    captions: list[str]
    description: str


def read_picture(sample: dict[str, str | bytes], root: str | Path) -> Image.Image:
    """The picture of a sample of `TarShards(root)`, as RGB.

    Raises:
        ShardError: it has none. ImageError: it cannot be read. The sentence names the sample's key.
    """
    name = f"{root}: sample {sample['__key__']}"
    data = next((sample[extension] for extension in PICTURES if extension in sample), None)
    if data is None:
        raise ShardError(f"{name} has no picture; its members need one of {', '.join(PICTURES)}.")
    return load_image(io.BytesIO(data), name=name)


class ImageTextShards:
    """Shards with a picture and either a `json` ({"captions": [...]} or {"caption": ...}) or a `txt` per sample.

    Raises:
        ShardError: a sample without picture or caption; the sentence names its key.
    """

    def __init__(self, root: str | Path, count: int | None = None) -> None:
        self.root, self.shards = root, TarShards(root)
        self.count = len(self.shards) if count is None else min(count, len(self.shards))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        sample = self.shards[index]
        key = sample["__key__"]
        try:
            values = json.loads(sample.get("json", b"{}"))
            captions = values.get("captions") or [values.get("caption") or sample.get("txt", b"").decode().strip()]
        except (ValueError, AttributeError) as error:
            raise ShardError(
                f"{self.root}: sample {key}: its captions cannot be read ({error}); mend or drop it."
            ) from error
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ShardError(
                f"{self.root}: sample {key}: its captions are {str(captions)[:80]!r}; 'captions' must be a list of "
                "texts and 'caption' one text."
            )
        if not all(caption.strip() for caption in captions):
            raise ShardError(
                f"{self.root}: sample {key} has no caption or an empty one; give it a .txt, or 'captions' in its .json."
            )
        return Pair(key, read_picture(sample, self.root), captions, values.get("description") or captions[0])


def vae_hash(vae: AutoencoderKL) -> str:
    """A short hash of the VAE's weights and scaling factor: what its latents depend on."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def preprocessing_hash(image_size: int) -> str:
    """Changes whenever the way from a picture to pixel_values does: size, and the code of `to_pixel_values`."""
    code = Path(to_pixel_values.__code__.co_filename).read_bytes()
    return hashlib.sha256(code + str(image_size).encode()).hexdigest()[:16]


def load_cached(folder: str | Path, vae: AutoencoderKL | None = None) -> dict:
    """Reads a cache written by `encoder.cache_latents`.

    Returns:
        latents float16 [N, 16, height, width]; pixels uint8 [N, 3, 8 height, 8 width]; keys, descriptions (lists of
        str); captions (list of lists of str); metadata.

    Raises:
        ShardError: there is no cache, encoder/images.py has changed since it was made, or `vae` is given and another
            VAE made it.
    """
    folder = Path(folder)
    if not (folder / CACHE_FILE).is_file():
        raise ShardError(f"There is no latent cache at {folder}; make it with python -m encoder.cache_latents.")
    with safe_open(folder / CACHE_FILE, framework="pt") as file:
        metadata = file.metadata()
        if metadata["preprocessing"] != preprocessing_hash(int(metadata["image_size"])):
            raise ShardError(
                f"The pictures of the latent cache {folder} were prepared by another version of encoder/images.py; "
                "make it again with python -m encoder.cache_latents."
            )
        cache = {"latents": file.get_tensor("latents"), "pixels": file.get_tensor("pixels"), "metadata": metadata}
    if vae is not None and metadata["vae"] != vae_hash(vae):
        raise ShardError(
            f"The latent cache {folder} was made by VAE {metadata['vae']}, not by this one "
            f"({vae_hash(vae)}); make it again with python -m encoder.cache_latents."
        )
    return {**cache, **json.loads((folder / TEXTS_FILE).read_text())}


def choose_caption(captions: list[str], rng: np.random.Generator, last_caption_probability: float) -> str:
    """The last caption with that probability (in `shapes` it is the fullest), else any with equal chance."""
    choice = int(rng.integers(len(captions)))
    return captions[-1 if rng.random() < last_caption_probability else choice]


class CachedPairs(Dataset):
    """Cached latents with one caption of each picture, drawn anew every epoch.

    Args:
        cache: what `load_cached` returns.
        last_caption_probability: see `choose_caption`.

    Items are {"latents": float32 [16, height, width], "pixels": uint8 [3, 8 height, 8 width], "caption": str,
    "key": str}.
    """

    def __init__(self, cache: dict, seed: int, last_caption_probability: float = 0.0) -> None:
        self.cache, self.seed, self.epoch = cache, seed, 0
        self.last_caption_probability = last_caption_probability

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.cache["keys"])

    def __getitem__(self, index: int) -> dict:
        captions = self.cache["captions"][index]
        rng = sample_rng(self.seed, self.epoch, index)
        return {
            "latents": self.cache["latents"][index].float(),
            "pixels": self.cache["pixels"][index],
            "caption": choose_caption(captions, rng, self.last_caption_probability),
            "key": self.cache["keys"][index],
        }


class DistinctSampler(Sampler[int]):
    """A new order every epoch in which no `batch_size` neighbours (one global batch) share a description.

    Two pictures of the same description would be each other's false negatives. A picture that finds its description
    taken waits for the next batch; one that still waits at the end of the epoch is left out of it.

    Raises:
        ValueError: fewer different descriptions than a batch needs.
    """

    def __init__(self, descriptions: list[str], batch_size: int, seed: int) -> None:
        numbers = {text: number for number, text in enumerate(dict.fromkeys(descriptions))}
        if len(numbers) < batch_size:
            raise ValueError(
                f"A batch of {batch_size} needs as many different descriptions and there are {len(numbers)}; "
                "lower per_device_train_batch_size or write more pictures."
            )
        self.labels = [numbers[text] for text in descriptions]
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
                    fresh = iter(rng.permutation(len(self.labels)).tolist())
                elif self.labels[index] in taken:
                    waiting.setdefault(self.labels[index], deque()).append(index)
                else:
                    taken.add(self.labels[index])
                    size += 1
                    yield index
