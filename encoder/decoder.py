"""The latent decoder: image tokens -> VAE latents, a ViT of patch size 1 over the token grid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.layers import LAYER_NORM_EPS, Block, init_weights
from encoder.positions import OPENVISION_FREQUENCIES, SMALL_GRID_FREQUENCIES, sincos_positions

# The paper's M/1, B/1 and L/1 (dimensions of OpenVision's vit.decode_variant), and ours for laptops.
DECODER_PRESETS = {
    "tiny": dict(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=768,
        position_frequencies=SMALL_GRID_FREQUENCIES,
    ),
    "medium": dict(hidden_size=512, num_hidden_layers=12, num_attention_heads=8, intermediate_size=2048),
    "base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}
NOISE_SPACES = ("layernorm", "raw", "statistics")


class LatentDecoder(nn.Module):
    """Decodes tokens into latents; in training it adds noise of a random strength to them first (paper, equation 3).

    Args:
        token_size: width of the image tokens.
        latent_patch_size: side of a token's patch in latents, 2.
        noise_tau: sigma is drawn from U[0, noise_tau] for each picture, in training only.
        noise_space: where the noise is added. "layernorm": after a LayerNorm without parameters, so that growing tokens
            cannot escape it; "raw": to the tokens as they are (the equation read literally); "statistics": to tokens of
            mean 0 and variance 1 per channel, by the stored statistics of a frozen encoder (`set_statistics`).
        position_frequencies: see `sincos_positions`.
    """

    def __init__(
        self,
        token_size: int,
        latent_channels: int,
        latent_patch_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        noise_tau: float = 0.8,
        noise_space: str = "layernorm",
        position_frequencies: Sequence[float] = OPENVISION_FREQUENCIES,
    ) -> None:
        super().__init__()
        if noise_space not in NOISE_SPACES:
            raise ValueError(f"noise_space is {noise_space!r}; choose one of {', '.join(NOISE_SPACES)}.")
        self.hidden_size, self.latent_patch_size = hidden_size, latent_patch_size
        self.noise_tau, self.noise_space = noise_tau, noise_space
        self.position_frequencies = position_frequencies
        if noise_space == "statistics":
            self.register_buffer("token_mean", torch.zeros(token_size))
            self.register_buffer("token_std", torch.ones(token_size))
        self.embedding = nn.Linear(token_size, hidden_size)
        self.layers = nn.ModuleList(
            Block(hidden_size, num_attention_heads, intermediate_size) for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(hidden_size, latent_channels * latent_patch_size**2)
        self.apply(init_weights)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Stores mean and standard deviation of each channel of the image tokens, both [token_size]."""
        self.token_mean.copy_(mean)
        self.token_std.copy_(std)

    def add_noise(self, image_tokens: Tensor) -> Tensor:
        """image_tokens [batch, num_patches, token_size], normalised as `noise_space` says and noised in training."""
        if self.noise_space == "layernorm":
            image_tokens = F.layer_norm(image_tokens, image_tokens.shape[-1:], eps=LAYER_NORM_EPS)
        elif self.noise_space == "statistics":
            image_tokens = (image_tokens - self.token_mean) / self.token_std
        if not self.training or self.noise_tau == 0:
            return image_tokens
        sigma = self.noise_tau * torch.rand(image_tokens.shape[0], 1, 1).to(image_tokens)
        return image_tokens + sigma * torch.randn_like(image_tokens)

    def forward(self, image_tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """image_tokens [batch, num_patches, token_size] -> latents [batch, latent_channels, 2 rows, 2 columns].

        Args:
            grid: (rows, columns) of the tokens; None: a square.

        Raises:
            ValueError: the number of tokens does not fit the grid.
        """
        count = image_tokens.shape[1]
        rows, columns = grid if grid is not None else (math.isqrt(count), math.isqrt(count))
        if rows * columns != count:
            raise ValueError(f"{count} image tokens do not fill a {rows} x {columns} grid; pass grid=(rows, columns).")
        hidden_states = self.embedding(self.add_noise(image_tokens))
        positions = sincos_positions(rows, columns, self.hidden_size, self.position_frequencies)
        hidden_states = hidden_states + positions.to(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        patches = self.head(self.norm(hidden_states)).transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(patches, self.latent_patch_size)
