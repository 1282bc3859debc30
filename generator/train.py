"""Trains the generator: python -m generator.train RECIPE.yaml [key=value ...]

Reads latents cached by encoder.cache_latents, turns them into image tokens with the frozen encoder and captions into
text states (once, when they fit in memory), and learns the velocity from noise to tokens. The result, a whole
OpenVision3Pipeline, lies in output_dir.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import encoder  # noqa: F401  registers the encoder's models with the Auto classes
from encoder.autoencoder import load_autoencoder
from encoder.images import picture_grid
from encoder.lineage import start_training, weights_hash
from encoder.statistics import TokenStatistics, token_statistics
from generator.data import Collator, DrawingDataset, Drawings, cache_tokens, encode_latents, load_drawings
from generator.flow import dimension_shift, picture_generators
from generator.objective import FlowObjective
from generator.pipeline import OpenVision3Pipeline, check_width, make_scheduler
from generator.statistics import check_normalized, measured_and_checked, token_covariance
from generator.text import TextStates, longest_text, states_width
from generator.transformer import PRESETS, DiTDHTransformer2DModel
from training.cli import run_cli
from training.recipes import REQUIRED, Recipe, check_init_from, load_recipe
from training.trainer import run_training


@dataclass
class GeneratorRecipe(Recipe):
    """Training of the flow-matching transformer; give text_encoder (text to image) or num_classes."""

    data: list[str] = field(default=REQUIRED, metadata={"help": "folders written by encoder.cache_latents"})
    autoencoder: str = field(default=REQUIRED, metadata={"help": "folder of the frozen OpenVision3Autoencoder"})
    text_encoder: str | None = field(
        default=None, metadata={"help": "folder of a text model for AutoModel; none: the autoencoder's own text tower"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder of its tokenizer; none: text_encoder's folder, or autoencoder/tokenizer"},
    )
    num_classes: int | None = field(
        default=None, metadata={"help": "draw this many classes, the labels in the cache, instead of text"}
    )
    size: str = field(default="tiny", metadata={"help": f"of a new transformer: {', '.join(PRESETS)}"})
    transformer: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "of a new one, arguments of DiTDHTransformer2DModel that differ from the size's"},
    )
    shift: float | None = field(
        default=None, metadata={"help": "time shift; none: max(1, sqrt(numbers in a picture's tokens / 4096))"}
    )
    max_text_tokens: int = field(default=256, metadata={"help": "longer captions are cut to this"})
    last_caption_probability: float = field(
        default=0.0, metadata={"help": "of learning from a picture's last caption, the fullest of shapes; else any"}
    )
    drop: float = field(default=0.1, metadata={"help": "share of captions or labels left out, for guidance"})
    cache_gb: float = field(
        default=4.0,
        metadata={"help": "image tokens and text states are encoded once and kept, float16, if they fit; 0: online"},
    )
    sample_prompts: list[str] = field(
        default_factory=list, metadata={"help": "prompts of the sample pictures; empty: the first captions of the data"}
    )
    sample_inference_steps: int = field(default=25, metadata={"help": "Euler steps of the sample pictures"})
    sample_guidance_scale: float = field(default=3.0, metadata={"help": "guidance of the sample pictures"})


def load_text(recipe: GeneratorRecipe, autoencoder: nn.Module) -> tuple[PreTrainedModel | None, Any]:
    """The frozen text encoder and its tokenizer, or two None where classes are drawn."""
    if recipe.num_classes is not None:
        return None, None
    if recipe.text_encoder is not None:
        if not Path(recipe.text_encoder).is_dir():
            raise ValueError(f"text_encoder: there is no folder {recipe.text_encoder}.")
        text_encoder = AutoModel.from_pretrained(recipe.text_encoder)
    elif getattr(autoencoder, "text_encoder", None) is not None:
        text_encoder = autoencoder.text_encoder
    else:
        raise ValueError(f"{recipe.autoencoder} has no text tower: give the recipe a text_encoder or num_classes.")
    folder = recipe.tokenizer or recipe.text_encoder or str(Path(recipe.autoencoder) / "tokenizer")
    if not Path(folder).is_dir():
        raise ValueError(f"tokenizer: there is no folder {folder}.")
    return text_encoder.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def cache_text(
    recipe: GeneratorRecipe, text_encoder: PreTrainedModel | None, tokenizer: Any, drawings: Drawings, most_gb: float
) -> tuple[int, TextStates | None]:
    """How many tokens of a caption are read, and the states of all captions and of "" if they fit `most_gb`."""
    if text_encoder is None:
        return 0, None
    limit = min(recipe.max_text_tokens, longest_text(text_encoder, tokenizer))
    if most_gb <= 0:
        return limit, None
    texts = ["", *(text for captions in drawings.captions for text in captions)]
    return limit, TextStates.compute(text_encoder, tokenizer, texts, limit, most_gb)


def build_transformer(
    recipe: GeneratorRecipe, first: Tensor, grid: tuple[int, int], text_width: int | None
) -> DiTDHTransformer2DModel:
    """A new transformer for tokens like `first` [1, num_patches, channels], or the one of init_from.

    Raises:
        ValueError: it cannot draw these tokens, or these classes, or learn what the recipe asks for.
    """
    if recipe.init_from is not None:
        check_init_from(recipe.init_from)
        transformer = DiTDHTransformer2DModel.from_pretrained(recipe.init_from)
        if transformer.config.in_channels != first.shape[-1]:
            raise ValueError(
                f"init_from: {recipe.init_from} draws tokens of width {transformer.config.in_channels}, the "
                f"encoder's have {first.shape[-1]}."
            )
        if transformer.config.num_classes != recipe.num_classes:
            raise ValueError(
                f"init_from: {recipe.init_from} has num_classes {transformer.config.num_classes}, the recipe "
                f"{recipe.num_classes}: correct num_classes, or start without init_from."
            )
        if transformer.grid != grid:  # sin-cos positions are recomputed, everything else does not depend on the grid
            moved = DiTDHTransformer2DModel.from_config({**transformer.config, "sample_size": list(grid)})
            state = transformer.state_dict()
            state["pos_embed"] = moved.pos_embed
            moved.load_state_dict(state, strict=True)
            transformer = moved
    else:
        transformer = DiTDHTransformer2DModel.preset(
            recipe.size,
            **{
                "sample_size": list(grid),
                "in_channels": first.shape[-1],
                "num_classes": recipe.num_classes,
                "text_hidden_size": text_width,
                **recipe.transformer,
            },
        )
    check_width(transformer)
    if transformer.config.statistics_per_position:
        raise ValueError("statistics_per_position is for RAE's weights: training measures statistics per channel.")
    if recipe.num_classes is not None and recipe.drop > 0 and not transformer.config.null_class:
        raise ValueError(f"drop is {recipe.drop} and there is no class for a label left out: set drop=0 or null_class.")
    return transformer


def measure_statistics(
    transformer: DiTDHTransformer2DModel, autoencoder: nn.Module, drawings: Drawings, tokens: Tensor | None, seed: int
) -> TokenStatistics:
    """Measures and stores the token statistics, then checks them on random pictures, others where there are enough."""
    measured, checked = measured_and_checked(len(drawings.keys), seed)

    def raw(pictures: Tensor) -> Iterator[Tensor]:
        for rows in pictures.split(1024):
            if tokens is not None:
                yield tokens[rows].float()
            else:
                yield from encode_latents(autoencoder, drawings.latents[rows])

    def chunks() -> Iterator[Tensor]:
        return raw(measured)

    statistics = token_statistics(chunks)
    transformer.set_statistics(statistics.mean, statistics.std)
    if transformer.config.linear_velocity:
        transformer.set_covariance(token_covariance(chunks, statistics).float())
    grids = torch.cat(list(raw(checked))).transpose(1, 2).unflatten(2, transformer.grid)
    normalized = transformer.normalize(grids).flatten(2).transpose(1, 2)
    print(check_normalized(normalized, statistics), flush=True)
    return statistics


def main(argv: list[str]) -> None:
    recipe = load_recipe(GeneratorRecipe, argv)
    seed = recipe.trainer.get("seed", 42)
    torch.manual_seed(seed)
    autoencoder = load_autoencoder(recipe.autoencoder)
    encoder_hash = weights_hash(recipe.autoencoder)
    text_encoder, tokenizer = load_text(recipe, autoencoder)
    drawings = load_drawings(recipe.data, autoencoder.vae, recipe.num_classes)

    first = next(encode_latents(autoencoder, drawings.latents[:1]))
    patch = autoencoder.encoder.config.latent_patch_size
    grid = tuple(side // patch for side in drawings.latents.shape[-2:])
    size_gb = 2 * first.numel() * len(drawings.keys) / 1e9
    tokens = cache_tokens(autoencoder, drawings.latents) if size_gb <= recipe.cache_gb else None
    used_gb = 0.0 if tokens is None else size_gb
    limit, states = cache_text(recipe, text_encoder, tokenizer, drawings, recipe.cache_gb - used_gb)
    text_width = None if text_encoder is None else states_width(text_encoder)
    transformer = build_transformer(recipe, first, grid, text_width)
    shift = recipe.shift or dimension_shift(first.shape[-1], *grid)
    texts = "online" if states is None else f"{2 * states.states.numel() / 1e9:.2f} GB in memory"
    print(
        f"{len(drawings.keys)} pictures, tokens {size_gb:.2f} GB {'in memory' if tokens is not None else 'online'}; "
        f"text states {texts}; "
        f"{sum(value.numel() for value in transformer.parameters()) / 1e6:.1f}M parameters; shift {shift:.3f}"
    )
    measure_statistics(transformer, autoencoder, drawings, tokens, seed)

    own_tokenizer = None
    if text_encoder is not None and text_encoder is autoencoder.text_encoder:
        own_tokenizer = tokenizer
    elif (folder := Path(recipe.autoencoder) / "tokenizer").is_dir():
        own_tokenizer = AutoTokenizer.from_pretrained(folder)
    pipeline = OpenVision3Pipeline(
        transformer, autoencoder, make_scheduler(shift), text_encoder, tokenizer, autoencoder_tokenizer=own_tokenizer
    )
    pipeline.set_progress_bar_config(disable=True)

    def sample_pictures() -> Image.Image:
        """The same prompts from the same noise, every time."""
        if recipe.num_classes is not None:
            what = {"class_labels": [index % recipe.num_classes for index in range(16)]}
        else:
            what = {"prompt": recipe.sample_prompts or [texts[-1] for texts in drawings.captions[:16]]}
        count = len(next(iter(what.values())))
        autoencoder.to(transformer.device)
        drawn = pipeline(
            num_inference_steps=recipe.sample_inference_steps,
            guidance_scale=recipe.sample_guidance_scale,
            generator=picture_generators(seed, range(count)),
            **what,
        )
        return picture_grid(drawn.images, columns=4)

    dataset = DrawingDataset(
        drawings,
        tokens,
        tuple(first.shape[1:]),
        seed,
        recipe.drop,
        recipe.last_caption_probability,
        recipe.num_classes,
    )
    run_training(
        FlowObjective(transformer, shift, autoencoder, text_encoder),
        dataset,
        recipe,
        collate=Collator(tokenizer, limit, states),
        sample_pictures=sample_pictures,
        start=lambda: start_training(recipe.output_dir, {"encoder": encoder_hash}),
        export=pipeline.save_pretrained,
    )


if __name__ == "__main__":
    run_cli(main)
