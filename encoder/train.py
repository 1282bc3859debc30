"""Pre-trains the unified encoder: python -m encoder.train encoder/recipes/tiny.yaml [key=value ...]

Reads a latent cache (`encoder.cache_latents`), so the frozen VAE encodes no picture twice. A stage is a recipe: the
second starts from the folder of the first (`init_from`) and may have another resolution.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from encoder.accumulation import WholeStep, share_step
from encoder.autoencoder import OpenVision3Autoencoder
from encoder.cache import LatentCache, vae_hash
from encoder.data import CachedPairs, DistinctSampler
from encoder.images import picture_grid, to_pil
from encoder.lineage import start_training
from encoder.lpips import LPIPS, lpips_of_recipe
from encoder.model import PRESETS
from encoder.pretraining import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.text import OpenVision3TextConfig
from encoder.tokenizer import load_tokenizer, text_settings, tokenize_captions
from encoder.vae import decode, load_vae
from training.cli import run_cli
from training.recipes import REQUIRED, Recipe, check_init_from, load_recipe
from training.trainer import run_training

# Every so many steps the gradient of each loss on the encoder is measured: a backward pass more for each of them.
GRADIENT_STEPS = 50


@dataclass
class EncoderRecipe(Recipe):
    """Joint pre-training of encoder, latent decoder and text towers on cached latents."""

    cache: str = field(default=REQUIRED, metadata={"help": "folder written by encoder.cache_latents"})
    vae: str = field(default=REQUIRED, metadata={"help": "folder of the frozen VAE that made the cache"})
    tokenizer: str = field(default=REQUIRED, metadata={"help": "tokenizer folder"})
    size: str = field(default="tiny", metadata={"help": f"one of {', '.join(PRESETS)}; ignored with init_from"})
    last_caption_probability: float = field(
        default=0.0, metadata={"help": "of taking a picture's last caption, in `shapes` the fullest; else any of them"}
    )
    lpips_vgg: str | None = field(default=None, metadata={"help": "VGG16's weights, where lpips_weight is above 0"})
    lpips_linear: str | None = field(default=None, metadata={"help": "LPIPS' own weights, see encoder/lpips.py"})
    objective: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "keyword arguments of OpenVision3PreTrainingConfig: loss weights, tau"}
    )


class PairCollator:
    """Samples of CachedPairs -> latents [batch, 16, h, w], pixels uint8 [batch, 3, 8h, 8w], input_ids, mask, keys."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, samples: list[dict]) -> dict:
        input_ids, mask = tokenize_captions(self.tokenizer, [row["caption"] for row in samples], self.max_length)
        return {
            "latents": torch.stack([row["latents"] for row in samples]),
            "pixels": torch.stack([row["pixels"] for row in samples]),
            "input_ids": input_ids,
            "attention_mask": mask,
            "keys": [row["key"] for row in samples],
        }


class PreTrainingObjective(nn.Module):
    """The model as the Trainer sees it. Frozen VAE and LPIPS are no submodules: neither saved nor counted."""

    def __init__(self, model: OpenVision3ForPreTraining, vae: AutoencoderKL, lpips: LPIPS | None = None) -> None:
        super().__init__()
        self.model = model
        self._vae, self._lpips = (vae,), (lpips,)  # tuples: not registered
        self._steps = 0

    def _decode(self, latents: Tensor) -> Tensor:
        return decode(self._vae[0].to(latents.device), latents)

    def forward(
        self,
        latents: Tensor,
        pixels: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        whole_step: WholeStep | None = None,
        features_only: bool = False,
    ) -> dict:
        """The losses of a batch, or with `features_only` what the first of two passes needs of a micro-batch: there it
        is an argument and no method, since DDP, DeepSpeed and autocast wrap the forward call alone."""
        if features_only:
            return self.model.features(latents, input_ids, attention_mask)
        with_pixels = self.model.config.pixel_loss_fraction > 0
        lpips = self._lpips[0] and self._lpips[0].to(latents.device)
        measure_gradients = self.training and self._steps % GRADIENT_STEPS == 0
        self._steps += self.training
        output = self.model(
            latents,
            input_ids,
            attention_mask,
            pixel_values=pixels.float() / 127.5 - 1.0 if with_pixels else None,
            decode_latents=self._decode if with_pixels else None,
            lpips=lpips,
            measure_gradients=measure_gradients,
            whole_step=whole_step,
        )
        return {"loss": output.loss, "losses": output.losses}


def build_model(recipe: EncoderRecipe, words: dict[str, int], image_size: int) -> OpenVision3ForPreTraining:
    """A new model of the recipe's size, or the one of the stage before at this stage's resolution and loss weights.

    words: `text_settings` of the tokenizer.

    Raises:
        ValueError: init_from holds no model or one of another tokenizer, or `objective` has a key that is no setting.
    """
    if recipe.init_from is None:
        config = OpenVision3PreTrainingConfig.preset(recipe.size, words["vocab_size"], image_size, **recipe.objective)
        config.text.update(words)
        return OpenVision3ForPreTraining(config)
    check_init_from(recipe.init_from)
    before = OpenVision3PreTrainingConfig.from_pretrained(recipe.init_from)
    settings = OpenVision3PreTrainingConfig.settings()
    if unknown := sorted(recipe.objective.keys() - settings):
        raise ValueError(
            f"objective.{unknown[0]} cannot be set where init_from names a model; choose among {', '.join(settings)}."
        )
    text = OpenVision3TextConfig(**before.text)
    if odd := sorted(name for name, value in words.items() if getattr(text, name) != value):
        raise ValueError(
            f"init_from: the text towers at {recipe.init_from} have {odd[0]} {getattr(text, odd[0])} and the tokenizer "
            f"{words[odd[0]]}; give the tokenizer that they were trained with."
        )
    config = OpenVision3PreTrainingConfig(
        encoder={**before.encoder, "image_size": image_size},
        decoder=before.decoder,
        text=before.text,
        **{name: recipe.objective.get(name, getattr(before, name)) for name in settings},
    )
    return OpenVision3ForPreTraining.from_pretrained(recipe.init_from, config=config)


def main(argv: list[str]) -> None:
    recipe = load_recipe(EncoderRecipe, argv)
    seed = recipe.trainer.get("seed", 42)
    torch.manual_seed(seed)
    vae = load_vae(recipe.vae)
    cache = LatentCache([recipe.cache], vae)
    tokenizer = load_tokenizer(recipe.tokenizer)
    model = build_model(recipe, text_settings(tokenizer), cache.image_size)
    weights = model.config
    lpips = lpips_of_recipe(weights.lpips_weight, weights.pixel_loss_fraction, recipe.lpips_vgg, recipe.lpips_linear)
    batch_size = recipe.trainer.get("per_device_train_batch_size", 8)
    batch_size *= recipe.trainer.get("gradient_accumulation_steps", 1)
    shown = cache.latents[:16].float()

    def sample_pictures() -> Image.Image:
        vae.to(model.device)
        latents = shown.to(model.device)
        decoded = decode(vae, model.latent_decoder(model.encoder(latents=latents).last_hidden_state))
        plain = decode(vae, latents)
        return picture_grid(to_pil(torch.cat([plain[:8], decoded[:8], plain[8:], decoded[8:]])), columns=8)

    def export(folder: Path) -> None:
        model.save_pretrained(folder / "pretraining")
        OpenVision3Autoencoder.from_pretraining(model, vae).save_pretrained(folder / "autoencoder")
        tokenizer.save_pretrained(folder / "autoencoder" / "tokenizer")

    run_training(
        PreTrainingObjective(model, vae, lpips),
        CachedPairs(cache, seed, recipe.last_caption_probability),
        recipe,
        collate=PairCollator(tokenizer, model.config.text.get("max_position_embeddings", 128)),
        sampler=lambda world_size: DistinctSampler(cache.descriptions, batch_size * world_size, seed),
        export=export,
        sample_pictures=sample_pictures,
        share_step=share_step,
        start=lambda: start_training(recipe.output_dir, {"vae": vae_hash(vae)}),
    )


if __name__ == "__main__":
    run_cli(main)
