"""The frozen VAE's two directions. The only file that knows the scaling factor."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

LATENT_CHANNELS = 16
DOWNSAMPLING = 8


def tiny_vae() -> AutoencoderKL:
    """An untrained f8, 16-channel VAE of 0.85M parameters; `norm_num_groups` divides every width."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def load_vae(folder: str | Path) -> AutoencoderKL:
    """The frozen VAE of a diffusers folder, in float32 whatever the file holds.

    Raises:
        ValueError: there is no VAE in the folder.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"There is no VAE at {folder}; train one with python -m encoder.train_vae.")
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixel_values: Tensor) -> Tensor:
    """pixel_values [batch, 3, height, width] in [-1, 1] -> latents [batch, 16, height/8, width/8].

    The posterior mean times scaling_factor, without the shift: what the released encoder was trained on.
    """
    return vae.encode(pixel_values).latent_dist.mean * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """latents [batch, 16, height/8, width/8] -> pixel_values [batch, 3, height, width], about [-1, 1]."""
    return vae.decode(latents / vae.config.scaling_factor).sample
