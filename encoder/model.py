"""The unified encoder: frozen VAE latents -> ViT -> tokens that serve understanding and generation alike."""

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoder import open_clip
from encoder.layers import LAYER_NORM_EPS, Block, StrictLoading, init_weights
from encoder.positions import OPENVISION_FREQUENCIES, SMALL_GRID_FREQUENCIES, sincos_positions
from encoder.vae import DOWNSAMPLING, encode

# Sizes: base from a released checkpoint's weights, large computed from its file size, tiny ours.
PRESETS = {
    "tiny": dict(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        position_frequencies=SMALL_GRID_FREQUENCIES,
    ),
    "base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}
POSITION_TOLERANCE = 1e-6


class OpenVision3Config(PretrainedConfig):
    """Sizes of the encoder. `image_size` and `patch_size` are in pixels; a patch is 2 x 2 latents of an f8 VAE.

    Args:
        projection_dim: width of the pooled contrastive vector; None: hidden_size.
        final_ln_after_pool: tokens leave before the last LayerNorm, which then sees their mean only (released layout).
        position_table: positions are a stored table, as in open_clip checkpoints, instead of the fixed sine-cosine.
        position_frequencies: see `sincos_positions`.
        normalize_tokens: a LayerNorm without parameters ends the token path, for consumers that mind large tokens.
        vae_config: config of a diffusers AutoencoderKL whose encoder half is part of the model; None: `latents` only.
    """

    model_type = "openvision3"

    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 16,
        latent_channels: int = 16,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        projection_dim: int | None = None,
        final_ln_after_pool: bool = True,
        position_table: bool = False,
        position_frequencies: Sequence[float] = OPENVISION_FREQUENCIES,
        normalize_tokens: bool = False,
        vae_config: dict | None = None,
        **kwargs,
    ) -> None:
        if patch_size % DOWNSAMPLING:
            raise ValueError(f"patch_size is {patch_size} pixels and must be a multiple of the VAE's {DOWNSAMPLING}.")
        if image_size % patch_size:
            raise ValueError(f"image_size is {image_size} pixels and must be a multiple of patch_size, {patch_size}.")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size is {hidden_size} and must be a multiple of num_attention_heads, {num_attention_heads}."
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.latent_channels = latent_channels
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.projection_dim = hidden_size if projection_dim is None else projection_dim
        self.final_ln_after_pool = final_ln_after_pool
        self.position_table = position_table
        self.position_frequencies = list(position_frequencies)
        self.normalize_tokens = normalize_tokens
        self.vae_config = vae_config
        super().__init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides) -> "OpenVision3Config":
        """The config of a named size: "tiny", "base" or "large"."""
        if name not in PRESETS:
            raise ValueError(f"There is no encoder preset {name!r}; choose one of {', '.join(PRESETS)}.")
        if unknown := sorted(overrides.keys() - inspect.signature(cls.__init__).parameters.keys()):
            raise ValueError(f"{unknown[0]} is not a setting of OpenVision3Config; see its docstring.")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def latent_patch_size(self) -> int:
        """Side of a patch in latents."""
        return self.patch_size // DOWNSAMPLING


class OpenVision3Model(StrictLoading, PreTrainedModel):
    """The encoder. Tokens are `last_hidden_state`, the pooled contrastive vector is `pooler_output`."""

    config_class = OpenVision3Config
    base_model_prefix = "openvision3"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]

    def __init__(self, config: OpenVision3Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.patch_embedding = nn.Conv2d(
            config.latent_channels, width, config.latent_patch_size, stride=config.latent_patch_size, bias=False
        )
        self.class_embedding = nn.Parameter(torch.empty(width))
        if config.position_table:
            side = config.image_size // config.patch_size
            self.position_embedding = nn.Parameter(torch.empty(1 + side * side, width))
        self.layers = nn.ModuleList(
            Block(width, config.num_attention_heads, config.intermediate_size) for _ in range(config.num_hidden_layers)
        )
        self.ln_post = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.proj = nn.Parameter(torch.empty(width, config.projection_dim))
        self.vae = None if config.vae_config is None else _encoder_half(config.vae_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, OpenVision3Model):
            nn.init.normal_(module.class_embedding, std=1e-6)
            nn.init.normal_(module.proj, std=0.02)
            nn.init.kaiming_uniform_(module.patch_embedding.weight, a=5**0.5)
            if module.config.position_table:
                side = module.config.image_size // module.config.patch_size
                table = F.pad(module._sincos(side, side), (0, 0, 1, 0))
                # transformers calls this after loading too; only its own functions spare what was loaded.
                initialization.copy_(module.position_embedding, table)
        elif isinstance(module, nn.Linear | nn.LayerNorm):
            init_weights(module)

    def attach_vae(self, vae: AutoencoderKL) -> "OpenVision3Model":
        """Takes the encoder half of `vae` in, frozen, so that the model accepts pixel_values and is saved with it."""
        if vae.config.latent_channels != self.config.latent_channels:
            raise ValueError(
                f"The VAE has {vae.config.latent_channels} latent_channels and the encoder takes "
                f"{self.config.latent_channels}; give it the VAE it was trained on."
            )
        self.config.vae_config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
        self.vae = _encoder_half(self.config.vae_config)
        own = self.vae.state_dict()
        self.vae.load_state_dict({key: value for key, value in vae.state_dict().items() if key in own})
        self.vae.to(self.class_embedding)
        return self

    @classmethod
    def from_open_clip(cls, path_or_hub_id: str | Path, vae: AutoencoderKL | None = None) -> "OpenVision3Model":
        """Reads a released checkpoint (open_clip_config.json and its weights), strictly; `vae` is attached if given."""
        config, state = open_clip.read(path_or_hub_id)
        model = cls(OpenVision3Config(**config)).eval()
        model.load_state_dict(state)
        return model if vae is None else model.attach_vae(vae)

    def save_open_clip(self, folder: str | Path) -> None:
        """Writes open_clip_config.json and open_clip_pytorch_model.bin as released; a VAE inside is left out."""
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("vae.")}
        if not self.config.position_table:
            side = self.config.image_size // self.config.patch_size
            state["position_embedding"] = self.positions(side, side)
        open_clip.write(folder, self.config, state)

    def train(self, mode: bool = True) -> "OpenVision3Model":
        super().train(mode)
        if self.vae is not None:  # transformers turns gradients on for all that it loads, then calls eval()
            self.vae.requires_grad_(False).eval()
        return self

    def _sincos(self, height: int, width: int) -> Tensor:
        return sincos_positions(height, width, self.config.hidden_size, self.config.position_frequencies)

    def positions(self, height: int, width: int) -> Tensor:
        """Position rows for a grid: [1 + height * width, hidden_size], the first of them the class token's.

        Raises:
            ValueError: a stored table that is not sine-cosine is asked for another grid than its own.
        """
        size = self.config.hidden_size
        side = self.config.image_size // self.config.patch_size
        fixed = self._sincos(height, width).to(self.class_embedding)
        zero = fixed.new_zeros(1, size)
        if not self.config.position_table:
            return torch.cat([zero, fixed])
        if (height, width) == (side, side):
            return self.position_embedding
        own = torch.cat([zero, self._sincos(side, side).to(zero)])
        if not (self.position_embedding - own).abs().max() <= POSITION_TOLERANCE:
            raise ValueError(
                f"This checkpoint's learned positions fit a {side} x {side} grid only, not {height} x {width};"
                f" give it pictures of {self.config.image_size} x {self.config.image_size} pixels."
            )
        return torch.cat([zero, fixed])

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [batch, 3, height, width] in [-1, 1] -> latents [batch, 16, height/8, width/8] in own dtype."""
        if self.vae is None:
            raise ValueError(
                "This encoder has no VAE, so it takes latents=, not pixel_values=; load it with vae=... "
                "or attach one by attach_vae()."
            )
        return encode(self.vae, pixel_values.to(self.dtype))

    def pool(self, image_tokens: Tensor) -> Tensor:
        """image_tokens [batch, num_patches, hidden_size] -> pooled [batch, projection_dim], not normalised.

        The tokens are those of a model without `normalize_tokens`, whose LayerNorm the pooled vector never sees.
        """
        pooled = image_tokens.mean(dim=1)
        if self.config.final_ln_after_pool:
            pooled = self.ln_post(pooled)
        return pooled @ self.proj

    def forward(
        self,
        pixel_values: Tensor | None = None,
        latents: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encodes pictures or their latents.

        Args:
            pixel_values: [batch, 3, height, width] in [-1, 1], sides multiples of patch_size.
            latents: [batch, latent_channels, height/8, width/8], posterior mean times scaling_factor.
            output_hidden_states, return_dict: accepted because LLaVA passes them; the output is always the same.

        Returns:
            last_hidden_state: image_tokens [batch, num_patches, hidden_size], a row-major grid without class token.
            pooler_output: [batch, projection_dim]. hidden_states: a tuple that holds the image_tokens.

        Raises:
            ValueError: not exactly one input, sides that do not divide into patches, or pixel_values without a VAE.
        """
        if (pixel_values is None) == (latents is None):
            raise ValueError("Give the encoder exactly one of pixel_values= and latents=.")
        if latents is None:
            latents = self.encode_pixels(pixel_values)
        patch = self.config.latent_patch_size
        if (
            latents.ndim != 4
            or latents.shape[1] != self.config.latent_channels
            or any(side < patch or side % patch for side in latents.shape[2:])
        ):
            raise ValueError(
                f"latents are {list(latents.shape)}; the encoder takes [batch, {self.config.latent_channels}, "
                f"height/8, width/8] with sides that are multiples of {patch}."
            )
        hidden_states = self.patch_embedding(latents)
        height, width = hidden_states.shape[2:]
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(hidden_states.shape[0], 1, -1)
        hidden_states = torch.cat([first, hidden_states], dim=1) + self.positions(height, width)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        image_tokens = hidden_states[:, 1:]
        if not self.config.final_ln_after_pool:
            image_tokens = self.ln_post(image_tokens)
        pooled = self.pool(image_tokens)
        if self.config.normalize_tokens:
            image_tokens = F.layer_norm(image_tokens, image_tokens.shape[-1:], eps=LAYER_NORM_EPS)
        return BaseModelOutputWithPooling(
            last_hidden_state=image_tokens, pooler_output=pooled, hidden_states=(image_tokens,)
        )


def _encoder_half(vae_config: dict) -> AutoencoderKL:
    """A frozen VAE without what only decoding needs; its weights are still to be loaded."""
    vae = AutoencoderKL.from_config(vae_config)
    vae.decoder = vae.post_quant_conv = None
    return vae.requires_grad_(False).eval()
