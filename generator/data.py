"""What the generator trains on: image tokens (or the latents they come from) with a caption or a class label."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.data import Dataset

from encoder.cache import LatentCache, Rows
from encoder.data import choose_caption
from generator.text import TextStates, tokenize
from training.shards import sample_rng

ENCODE_BATCH = 128


@dataclass
class Drawings:
    """latents float16 [pictures, 16, height, width]; captions of each picture; labels where classes are drawn."""

    keys: Sequence[str]
    latents: Tensor | Rows
    captions: Sequence[list[str]]
    labels: Sequence[int] | None = None


def load_drawings(folders: Sequence[str], vae: AutoencoderKL, num_classes: int | None = None) -> Drawings:
    """Joins caches that encoder.cache_latents wrote with this `vae`; a row each view of a picture.

    Raises:
        ValueError: there is no such cache, another VAE made it, or a picture has no class where classes are drawn.
    """
    if not folders:
        raise ValueError("The recipe's data is empty: name the folders that encoder.cache_latents wrote.")
    cache = LatentCache(folders, vae)
    labels = None
    if num_classes is not None:
        labels = cache.labels
        if len(wrong := np.flatnonzero((labels < 0) | (labels >= num_classes))):
            raise ValueError(
                f"Picture {cache.keys[wrong[0]]} of {', '.join(folders)} has no class below {num_classes}: cache "
                "pictures with a .cls or a label each, or correct num_classes."
            )
    return Drawings(cache.keys, cache.latents, cache.captions, labels)


def encode_latents(autoencoder: nn.Module, latents: Tensor | Rows) -> Iterator[Tensor]:
    """latents [pictures, 16, height, width] -> image tokens [up to 128, num_patches, channels], batch by batch."""
    parameter = next(autoencoder.parameters())
    for chunk in latents.split(ENCODE_BATCH):
        yield autoencoder.encode_latents(chunk.to(parameter.device, parameter.dtype))


def cache_tokens(autoencoder: nn.Module, latents: Tensor | Rows) -> Tensor:
    """All image tokens as float16 [pictures, num_patches, channels] in memory."""
    tokens = torch.cat([chunk.cpu().half() for chunk in encode_latents(autoencoder, latents)])
    if not torch.isfinite(tokens).all():
        raise ValueError("Some image tokens do not fit float16: train with cache_gb=0, which encodes them online.")
    return tokens


class DrawingDataset(Dataset):
    """One picture with a caption (or label), its noise and its timestep before the shift.

    Every random choice comes from (seed, epoch, index), so that neither batch size, accumulation nor the number of
    processes changes what a picture is trained with. Items are {"key", "image_tokens" float16 [num_patches, channels]
    or "latents", "text": str or "label": int, "noise" [num_patches, channels], "timestep": float}.
    """

    def __init__(
        self, drawings: Drawings, tokens: Tensor | None, token_shape: tuple[int, int], seed: int, drop: float,
        last_caption_probability: float, null_label: int | None,
    ):  # fmt: skip
        self.drawings, self.tokens, self.token_shape = drawings, tokens, token_shape
        self.seed, self.drop, self.null_label, self.epoch = seed, drop, null_label, 0
        self.last_caption_probability = last_caption_probability

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.drawings.keys)

    def __getitem__(self, index: int) -> dict:
        rng = sample_rng(self.seed, self.epoch, index)
        if self.drawings.labels is None:
            text = choose_caption(self.drawings.captions[index], rng, self.last_caption_probability)
        dropped = rng.random() < self.drop
        item = {
            "key": self.drawings.keys[index],
            "timestep": float(1 / (1 + np.exp(-rng.standard_normal()))),
            "noise": torch.from_numpy(rng.standard_normal(self.token_shape, dtype=np.float32)),
        }
        if self.drawings.labels is None:
            item["text"] = "" if dropped else text
        else:
            item["label"] = self.null_label if dropped else int(self.drawings.labels[index])
        if self.tokens is None:
            item["latents"] = self.drawings.latents[index]
        else:
            item["image_tokens"] = self.tokens[index]
        return item


@dataclass
class Collator:
    """Items -> batch; texts become `encoder_hidden_states` where `states` holds them, else `input_ids`.

    Both are padded to the longest text of the batch and come with an `attention_mask`; ids are cut at max_length.
    """

    tokenizer: object | None
    max_length: int
    states: TextStates | None = None

    def __call__(self, items: list[dict]) -> dict:
        batch: dict = {
            "keys": [item["key"] for item in items],
            "timestep": torch.tensor([item["timestep"] for item in items], dtype=torch.float32),
            "noise": torch.stack([item["noise"] for item in items]),
        }
        name = "latents" if "latents" in items[0] else "image_tokens"
        batch[name] = torch.stack([item[name] for item in items])
        if "label" in items[0]:
            batch["class_labels"] = torch.tensor([item["label"] for item in items])
            return batch
        texts = [item["text"] for item in items]
        if self.states is not None:
            batch["encoder_hidden_states"], batch["attention_mask"] = self.states(texts)
        else:
            batch["input_ids"], batch["attention_mask"] = tokenize(self.tokenizer, texts, self.max_length, cut=True)
        return batch
