"""Trains the tiny VAE: python -m encoder.train_vae encoder/recipes/tiny_vae.yaml

Random crops instead of whole pictures: a convolutional autoencoder learns what an edge looks like, and small crops show
it more different edges per second.
"""

import hashlib
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.data import ImageTextStream, read_picture, sample_name
from encoder.images import ImageError, picture_grid, to_pil, to_pixel_values
from encoder.linear_code import LinearCode
from encoder.vae import DOWNSAMPLING, decode, encode, tiny_vae
from training.cli import run_cli
from training.recipes import Recipe, check_init_from, load_recipe
from training.shards import ShardError, sample_rng
from training.streaming import ShuffledStream
from training.trainer import run_training

# The weight of the KL term relative to a summed reconstruction error (latent diffusion, arXiv 2112.10752).
KL_WEIGHT = 1e-6
# Crops that the linear code is fitted to.
CODE_CROPS = 2000
# Pictures that the scale of the latents is measured on.
MEASURED = 512


@dataclass
class VAERecipe(Recipe):
    """Training of the tiny f8, 16-channel autoencoder on crops of pictures."""

    shards: list[str] = field(
        default_factory=list, metadata={"help": "folders of .tar shards, .parquet files or tables with pictures"}
    )
    on_error: str = field(default="stop", metadata={"help": "at a picture that cannot be used: stop, or skip it"})
    buffer_size: int = field(
        default=10_000, metadata={"help": "pictures, as files, that each worker holds and shuffles among each other"}
    )
    crop_size: int = field(default=32, metadata={"help": "side of the random crops in pixels, a multiple of 8"})
    mse_weight: float = field(default=2.0, metadata={"help": "weight of the squared error beside the absolute one"})
    chroma_weight: float = field(
        default=0.0, metadata={"help": "added to the weight of a fully saturated pixel's errors; a grey one's is 1"}
    )
    linear_weight: float = field(
        default=0.0, metadata={"help": "weight of the squared distance of the latents from the linear code"}
    )


class Crops:
    """Random square crops of pictures, as items of a ShuffledStream; of two candidates the one with more contrast.

    `crops(sample, epoch)` is {"pixel_values": uint8 [3, crop_size, crop_size], "key": str}, or None where the sample
    is left out.

    Raises:
        ValueError: crop_size is not a multiple of 8; with on_error="stop", a picture cannot be read or is smaller than
            a crop.
    """

    def __init__(self, stream: ImageTextStream, crop_size: int, seed: int) -> None:
        if crop_size < DOWNSAMPLING or crop_size % DOWNSAMPLING:
            raise ValueError(f"crop_size is {crop_size} and must be a multiple of {DOWNSAMPLING}.")
        self.stream, self.crop_size, self.seed = stream, crop_size, seed

    def __call__(self, sample: dict | ShardError, epoch: int) -> dict | None:
        picture = self.picture(sample, epoch)
        if picture is None:
            return None
        name = f"{sample['__url__']}/{sample['__key__']}"
        rng = sample_rng(self.seed, epoch, int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))
        crops = [self._crop(picture, rng) for _ in range(2)]
        best = max(crops, key=lambda crop: crop.std(axis=(0, 1)).sum())
        return {"pixel_values": torch.from_numpy(np.ascontiguousarray(best.transpose(2, 0, 1))), "key": name}

    def picture(self, sample: dict | ShardError, epoch: int) -> np.ndarray | None:
        """The whole picture [height, width, 3] uint8."""
        return self.stream.use(sample, self._read)

    def _read(self, sample: dict) -> np.ndarray:
        picture = read_picture(sample)
        if min(picture.size) < self.crop_size:
            raise ImageError(
                f"{sample_name(sample)} is {picture.width}x{picture.height}, smaller than crop_size={self.crop_size}: "
                "lower crop_size or leave the picture out."
            )
        return np.asarray(picture)

    def _crop(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        top, left = (int(rng.integers(side - self.crop_size + 1)) for side in picture.shape[:2])
        return picture[top : top + self.crop_size, left : left + self.crop_size]


def collate(samples: list[dict]) -> dict:
    """pixel_values: [batch, 3, crop_size, crop_size] in [-1, 1]."""
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    return {"pixel_values": pixels.float() / 127.5 - 1.0, "keys": [sample["key"] for sample in samples]}


class VAEObjective(nn.Module):
    """Absolute plus weighted squared error of the reconstruction, and a slight pull of the posterior to N(0, 1).

    With `chroma_weight`, errors on saturated pixels weigh more: in `shapes` those are the objects.

    With `linear_weight`, also the squared distance of the latents from a linear code of their 8 x 8 pixels. Left to
    itself so small a VAE tangles colour and outline into all channels, and whatever learns from its latents must first
    undo that.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        mse_weight: float,
        chroma_weight: float,
        linear_weight: float,
        linear_code: LinearCode,
    ) -> None:
        super().__init__()
        self.vae, self.mse_weight, self.chroma_weight = vae, mse_weight, chroma_weight
        self.linear_weight, self.linear_code = linear_weight, linear_code

    def forward(self, pixel_values: Tensor) -> dict:
        posterior = self.vae.encode(pixel_values).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample
        chroma = (pixel_values.amax(dim=1, keepdim=True) - pixel_values.amin(dim=1, keepdim=True)) / 2
        error = (decoded - pixel_values) * (1 + self.chroma_weight * chroma)
        l1, mse = error.abs().mean(), error.pow(2).mean()
        kl = posterior.kl().sum() / pixel_values.numel()
        linear = F.mse_loss(posterior.mean, self.linear_code.encode(pixel_values))
        return {
            "loss": l1 + self.mse_weight * mse + KL_WEIGHT * kl + self.linear_weight * linear,
            "losses": {"l1": l1.detach(), "mse": mse.detach(), "kl": kl.detach(), "linear": linear.detach()},
        }


@torch.no_grad()
def latent_std(vae: AutoencoderKL, pictures: list[np.ndarray]) -> float:
    """Standard deviation of the posterior means over whole pictures, channels and places together."""
    by_size: dict[tuple, list[np.ndarray]] = {}
    for picture in pictures:
        by_size.setdefault(picture.shape, []).append(picture)
    means = []
    for group in by_size.values():
        pixels = torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        means += [vae.encode(part.to(vae.device)).latent_dist.mean.flatten() for part in pixels.split(32)]
    return torch.cat(means).std().item()


def main(argv: list[str]) -> None:
    recipe = load_recipe(VAERecipe, argv)
    seed = recipe.trainer.get("seed", 42)
    torch.manual_seed(seed)
    if not recipe.shards:
        raise ValueError("The recipe's shards is empty: name folders of .tar shards with pictures.")
    stream = ImageTextStream(*recipe.shards, on_error=recipe.on_error)
    crops = Crops(stream, recipe.crop_size, seed)
    dataset = ShuffledStream(stream.source, crops, seed, recipe.buffer_size)
    if recipe.init_from is None:
        vae = tiny_vae()
        with torch.no_grad():  # the posterior starts narrow, else its noise drowns the first few hundred steps
            vae.encoder.conv_out.bias[vae.config.latent_channels :] = -6.0
    else:
        check_init_from(recipe.init_from)
        vae = AutoencoderKL.from_pretrained(recipe.init_from)
    linear_code = LinearCode.fit(collate(list(islice(dataset, CODE_CROPS)))["pixel_values"])
    samples = (sample for _, sample in stream.source.samples(rng=np.random.default_rng(seed)))
    usable = (picture for sample in samples if (picture := crops.picture(sample, 0)) is not None)
    pictures = list(islice(usable, MEASURED))
    shown = to_pixel_values([Image.fromarray(picture) for picture in pictures[:8]], 128)

    def sample_pictures() -> Image.Image:
        pixel_values = shown.to(vae.device)
        both = torch.cat([pixel_values, decode(vae, encode(vae, pixel_values))])
        return picture_grid(to_pil(both), columns=8)

    def export(folder: Path) -> None:
        vae.eval()
        # Latents leave encoder.vae.encode with unit standard deviation over the training pictures.
        vae.register_to_config(scaling_factor=1.0 / latent_std(vae, pictures))
        vae.save_pretrained(folder)

    run_training(
        VAEObjective(vae, recipe.mse_weight, recipe.chroma_weight, recipe.linear_weight, linear_code),
        dataset,
        recipe,
        collate=collate,
        export=export,
        sample_pictures=sample_pictures,
    )


if __name__ == "__main__":
    run_cli(main)
