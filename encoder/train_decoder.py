"""Trains a latent decoder for a frozen encoder: python -m encoder.train_decoder RECIPE.yaml [key=value ...]

Released encoders come without one. Reads a latent cache (`encoder.cache_latents`) made by the VAE that the encoder was
trained on, measures the encoder's token statistics on it, and writes an autoencoder folder: encoder, decoder, VAE.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from encoder.autoencoder import OpenVision3Autoencoder, load_autoencoder, load_encoder
from encoder.cache import LatentCache, vae_hash
from encoder.data import CachedPairs
from encoder.decoder import DECODER_PRESETS, LatentDecoder
from encoder.images import picture_grid, to_pil
from encoder.lineage import start_training, weights_hash
from encoder.losses import reconstruction_losses
from encoder.lpips import LPIPS, lpips_of_recipe
from encoder.model import OpenVision3Model
from encoder.statistics import token_statistics
from encoder.vae import decode, load_vae
from training.arguments import training_arguments
from training.cli import run_cli
from training.recipes import REQUIRED, Recipe, check_init_from, load_recipe
from training.trainer import run_training

# Token statistics are measured on so many pictures of the cache, evenly spread over it.
MEASURED_PICTURES = 4096
BATCH = 64


@dataclass
class DecoderRecipe(Recipe):
    """A latent decoder for a frozen encoder. init_from: an autoencoder whose latent decoder is trained on."""

    encoder: str = field(
        default=REQUIRED, metadata={"help": "frozen encoder: a folder of ours, or a released one (folder or hub id)"}
    )
    cache: str = field(default=REQUIRED, metadata={"help": "folder written by encoder.cache_latents"})
    vae: str = field(default=REQUIRED, metadata={"help": "folder of the frozen VAE that made the cache"})
    size: str = field(default="base", metadata={"help": f"one of {', '.join(DECODER_PRESETS)}"})
    noise_tau: float = field(default=0.8, metadata={"help": "see LatentDecoder"})
    noise_space: str = field(default="statistics", metadata={"help": "see LatentDecoder"})
    latent_weight: float = field(default=0.4, metadata={"help": "of the latent l1 beside the pixel l1"})
    lpips_weight: float = field(default=0.0, metadata={"help": "of LPIPS beside the pixel l1"})
    lpips_vgg: str | None = field(default=None, metadata={"help": "VGG16's weights, where lpips_weight is above 0"})
    lpips_linear: str | None = field(default=None, metadata={"help": "LPIPS' own weights, see encoder/lpips.py"})
    pixel_loss_fraction: float = field(
        default=1.0, metadata={"help": "share of the batch, drawn anew each step, that is decoded to pixels"}
    )


class DecoderObjective(nn.Module):
    """The latent decoder as the Trainer sees it. What is frozen is no submodule: neither saved nor counted.

    weights: of the terms `latent`, `pixel` and `lpips`.
    """

    def __init__(
        self,
        latent_decoder: LatentDecoder,
        encoder: OpenVision3Model,
        vae: AutoencoderKL,
        lpips: LPIPS | None,
        weights: dict[str, float],
        pixel_loss_fraction: float,
    ) -> None:
        super().__init__()
        self.latent_decoder = latent_decoder
        self._frozen = (encoder, vae, lpips)  # a tuple: not registered
        self.weights, self.pixel_loss_fraction = weights, pixel_loss_fraction

    def reconstruct(self, latents: Tensor) -> Tensor:
        """latents [batch, latent_channels, height/8, width/8] -> the latents that the decoder makes of their tokens."""
        encoder = self._frozen[0].to(latents.device)
        with torch.no_grad():
            image_tokens = encoder(latents=latents).last_hidden_state
        patch = encoder.config.latent_patch_size
        return self.latent_decoder(image_tokens, (latents.shape[2] // patch, latents.shape[3] // patch))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents [batch, latent_channels, height/8, width/8] -> pixel_values [batch, 3, height, width]."""
        return decode(self._frozen[1].to(latents.device), latents)

    def forward(self, latents: Tensor, pixels: Tensor) -> dict:
        """latents [batch, latent_channels, height/8, width/8]; pixels uint8 [batch, 3, height, width]."""
        losses = reconstruction_losses(
            self.reconstruct(latents),
            latents,
            pixels.float() / 127.5 - 1.0,
            self.decode_latents,
            self.pixel_loss_fraction,
            self._frozen[2] and self._frozen[2].to(latents.device),
        )
        loss = sum(self.weights[name] * value for name, value in losses.items())
        return {"loss": loss, "losses": {name: value.detach() for name, value in losses.items()}}


def collate(samples: list[dict]) -> dict:
    """Samples of CachedPairs -> latents [batch, 16, h, w], pixels uint8 [batch, 3, 8h, 8w], keys."""
    return {
        "latents": torch.stack([row["latents"] for row in samples]),
        "pixels": torch.stack([row["pixels"] for row in samples]),
        "keys": [row["key"] for row in samples],
    }


@torch.no_grad()
def store_statistics(latent_decoder: LatentDecoder, encoder: OpenVision3Model, dataset: CachedPairs) -> None:
    """Measures the image tokens of the cached pictures and stores their mean and std in the decoder."""
    order = torch.linspace(0, len(dataset) - 1, min(len(dataset), MEASURED_PICTURES)).long()

    def chunks() -> Iterator[Tensor]:
        for part in order.split(BATCH):
            latents = torch.stack([dataset[index]["latents"] for index in part.tolist()])
            yield encoder(latents=latents.to(encoder.device)).last_hidden_state

    statistics = token_statistics(chunks)
    latent_decoder.set_statistics(statistics.mean, statistics.std)


def main(argv: list[str]) -> None:
    recipe = load_recipe(DecoderRecipe, argv)
    seed = recipe.trainer.get("seed", 42)
    torch.manual_seed(seed)
    if recipe.size not in DECODER_PRESETS:
        raise ValueError(f"There is no decoder preset {recipe.size!r}; choose one of {', '.join(DECODER_PRESETS)}.")
    vae = load_vae(recipe.vae)
    encoder = load_encoder(recipe.encoder).requires_grad_(False)
    encoder.vae = None  # the cache stands in its place
    # A hub id, whose files lie elsewhere, stands for itself.
    encoder_hash = weights_hash(recipe.encoder) if Path(recipe.encoder).is_dir() else recipe.encoder
    cache = LatentCache([recipe.cache], vae)
    dataset = CachedPairs(cache, seed)
    settings = {**DECODER_PRESETS[recipe.size], "noise_tau": recipe.noise_tau, "noise_space": recipe.noise_space}
    config = encoder.config
    latent_decoder = LatentDecoder(config.hidden_size, config.latent_channels, config.latent_patch_size, **settings)
    if recipe.init_from is not None:
        check_init_from(recipe.init_from)
        latent_decoder.load_state_dict(load_autoencoder(recipe.init_from).latent_decoder.state_dict())
    elif recipe.noise_space == "statistics" and not recipe.dry_run:
        encoder.to(training_arguments(recipe).device)
        store_statistics(latent_decoder, encoder, dataset)
    fraction = recipe.pixel_loss_fraction
    lpips = lpips_of_recipe(recipe.lpips_weight, fraction, recipe.lpips_vgg, recipe.lpips_linear)
    weights = {"latent": recipe.latent_weight, "pixel": 1.0, "lpips": recipe.lpips_weight}
    objective = DecoderObjective(latent_decoder, encoder, vae, lpips, weights, fraction)
    shown = torch.stack([dataset[index]["latents"] for index in range(min(16, len(dataset)))])

    def sample_pictures() -> Image.Image:
        latents = shown.to(next(latent_decoder.parameters()).device)
        plain, decoded = (objective.decode_latents(part) for part in (latents, objective.reconstruct(latents)))
        return picture_grid(to_pil(torch.cat([plain[:8], decoded[:8], plain[8:], decoded[8:]])), columns=8)

    def export(folder: Path) -> None:
        whole = OpenVision3Autoencoder.from_frozen_encoder(encoder, latent_decoder, settings, vae)
        whole.save_pretrained(folder / "autoencoder")

    run_training(
        objective,
        dataset,
        recipe,
        collate=collate,
        export=export,
        sample_pictures=sample_pictures,
        start=lambda: start_training(recipe.output_dir, {"vae": vae_hash(vae), "encoder": encoder_hash}),
    )


if __name__ == "__main__":
    run_cli(main)
