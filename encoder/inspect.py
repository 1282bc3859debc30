"""Says what an encoder checkpoint holds, before anything is trained on it.

    python -m encoder.inspect PATH [--pictures DIR] [--vae DIR] [--device cuda]

PATH is a checkpoint as released (open_clip_config.json and its weights; a hub id works), or a folder of ours: an
encoder or an autoencoder. Token sizes are measured on pictures where there are pictures and a VAE, else on random
latents, which show less: outlier channels depend on what is seen.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from encoder.autoencoder import load_encoder
from encoder.commands import add_device_argument, usable_device
from encoder.images import ImageError, load_image, to_pixel_values
from encoder.model import POSITION_TOLERANCE, OpenVision3Model
from encoder.positions import sincos_positions
from training.cli import run_cli

RANDOM_LATENTS = 8
MOST_PICTURES = 64
BATCH = 8
# A channel is an outlier when its RMS is this many times the median channel's.
OUTLIER = 5.0
# Between these a token RMS counts as 1: noise of strength [0, 1) means what the paper's equation says.
UNIT_RMS = (0.5, 2.0)


@torch.no_grad()
def inspect_weights(model: OpenVision3Model) -> dict[str, Any]:
    """What the weights alone say: sizes, normalisation, projection, positions."""
    config = model.config
    side = config.image_size // config.patch_size
    proj = model.proj
    positions = "fixed sine-cosine, not stored"
    if config.position_table:
        fixed = F.pad(sincos_positions(side, side, config.hidden_size, config.position_frequencies), (0, 0, 1, 0)).to(
            model.position_embedding
        )
        worst = (model.position_embedding - fixed).abs().max().item()
        positions = (
            "stored table, equal to the fixed sine-cosine one: any grid works"
            if worst <= POSITION_TOLERANCE
            else f"stored table, off the fixed one by up to {worst:.3g}: only {side} x {side} grids work"
        )
    identity = proj.shape[0] == proj.shape[1] and torch.equal(proj, torch.eye(proj.shape[0]).to(proj))
    return {
        "parameters": sum(value.numel() for name, value in model.named_parameters() if not name.startswith("vae.")),
        "layers x width": f"{config.num_hidden_layers} x {config.hidden_size}",
        "heads, mlp": f"{config.num_attention_heads}, {config.intermediate_size}",
        "picture, patch": f"{config.image_size} px, {config.patch_size} px: {side} x {side} tokens",
        "latent channels": config.latent_channels,
        "tokens normalised": tokens_normalised(model),
        "proj": f"{proj.shape[0]} x {proj.shape[1]}, {'the identity' if identity else 'not the identity'}",
        "positions": positions,
        "VAE inside": model.vae is not None,
    }


def tokens_normalised(model: OpenVision3Model) -> bool:
    """Whether a LayerNorm is the last thing that tokens pass."""
    return model.config.normalize_tokens or not model.config.final_ln_after_pool


def inspect_tokens(image_tokens: Tensor, normalised: bool) -> dict[str, Any]:
    """image_tokens [batch, num_patches, hidden_size] -> their scale, outlier channels and the noise_space they advise.

    Noise of one strength for all channels asks for channels of one size. With outliers that holds neither before nor
    after a LayerNorm, but once each channel is normalised by its own statistics, which a frozen encoder has.
    """
    channels = image_tokens.cpu().double().pow(2).mean(dim=(0, 1)).sqrt()
    rms = channels.pow(2).mean().sqrt().item()
    ratio = channels / channels.median().clamp(min=1e-12)
    order = ratio.argsort(descending=True)
    outliers = [int(channel) for channel in order if ratio[channel] > OUTLIER]
    if outliers:
        advice, why = "statistics", "outlier channels: only noise in units of each channel is the same to all of them"
    elif normalised and UNIT_RMS[0] <= rms <= UNIT_RMS[1]:
        advice, why = "raw", "normalised tokens of unit size: noise acts as the paper's equation says"
    else:
        advice, why = "layernorm", "free token size: normalise before adding noise of unit size"
    power = channels.pow(2)
    return {
        "token RMS": round(rms, 4),
        "channel RMS, median and largest": f"{channels.median().item():.4g}, {channels.max().item():.4g}",
        "power in the largest 1% of channels": f"{power[order[: max(1, len(order) // 100)]].sum() / power.sum():.1%}",
        "outlier channels": ", ".join(f"{channel} ({ratio[channel]:.0f}x)" for channel in outliers[:10]) or "none",
        "number of outlier channels": len(outliers),
        "advised noise_space": f"{advice} ({why})",
    }


@torch.no_grad()
def tokens_of(model: OpenVision3Model, folder: Path | None) -> tuple[str, Tensor]:
    """What was measured, in words, and its image_tokens [batch, num_patches, hidden_size].

    Raises:
        ValueError: the folder has no readable picture, or there is no VAE to read pictures with.
    """
    config = model.config
    if folder is None:
        side = config.image_size // config.patch_size * config.latent_patch_size
        shape = (RANDOM_LATENTS, config.latent_channels, side, side)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return f"{RANDOM_LATENTS} random latents", model(latents=latents.to(model.device)).last_hidden_state
    pictures, broken = [], 0
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if len(pictures) == MOST_PICTURES:
            break
        try:
            pictures.append(to_pixel_values([load_image(file)], config.image_size))
        except ImageError:
            broken += 1
    if not pictures:
        raise ValueError(f"There is no readable picture below {folder} ({broken} other files); name another folder.")
    batches = torch.cat(pictures).split(BATCH)
    parts = [
        model(pixel_values=batch.to(model.device)).last_hidden_state
        for batch in tqdm(batches, desc="pictures", mininterval=2)
    ]
    skipped = f", {broken} other files skipped" if broken else ""
    return f"{len(pictures)} pictures{skipped}", torch.cat(parts)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="PATH", help="checkpoint folder, or hub id (owner/name) of a released one")
    parser.add_argument(
        "--pictures",
        type=Path,
        default=None,
        help=f"folder of pictures, of which {MOST_PICTURES} are used; needs a VAE",
    )
    parser.add_argument("--vae", type=Path, default=None, help="folder of a diffusers AutoencoderKL")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    device = usable_device(args.device)
    model = load_encoder(args.path, args.vae).to(device)
    measured, image_tokens = tokens_of(model, args.pictures)
    report = {
        **inspect_weights(model),
        "measured on": measured,
        **inspect_tokens(image_tokens, tokens_normalised(model)),
    }
    for name, value in report.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        print(f"{name:<36}{f'{shown:,}' if isinstance(shown, int) else shown}")


if __name__ == "__main__":
    run_cli(main)
