"""DiT^DH: a deep narrow encoder says what the picture is; a shallow wide head says where its tokens should move.

hidden_states are normalised image tokens on their grid, [batch, channels, height, width]. Published by RAE with class
labels; text is ours. Sizes are rows of PRESETS.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.positions import OPENVISION_FREQUENCIES, SMALL_GRID_FREQUENCIES
from generator.layers import (
    BuffersKeepDtype,
    DiTBlock,
    FinalLayer,
    LabelEmbedding,
    TextEmbedding,
    TimeEmbedding,
    rotary_table,
    signed,
    sincos_table,
)
from generator.tokens import TokenSpace

# encoder and head: width, depth, heads. S and XL are RAE's; B and L are LightningDiT's encoders with RAE's head.
# fmt: off
PRESETS: dict[str, dict] = {
    "tiny": {"hidden_size": (192, 256), "num_layers": (6, 2), "num_attention_heads": (3, 4),
             "position_frequencies": SMALL_GRID_FREQUENCIES, "linear_velocity": True},
    "S": {"hidden_size": (384, 2048), "num_layers": (12, 2), "num_attention_heads": (6, 16)},
    "B": {"hidden_size": (768, 2048), "num_layers": (12, 2), "num_attention_heads": (12, 16)},
    "L": {"hidden_size": (1024, 2048), "num_layers": (24, 2), "num_attention_heads": (16, 16)},
    "XL": {"hidden_size": (1152, 2048), "num_layers": (28, 2), "num_attention_heads": (16, 16)},
}
# fmt: on
PREDICTIONS = ("velocity", "x")
EARLIEST_TIMESTEP = 0.05  # JiT's floor (arXiv 2511.13720): a velocity made of clean tokens is divided by the time


class DiTDHTransformer2DModel(BuffersKeepDtype, TokenSpace, ModelMixin, ConfigMixin):
    """Velocity of flow matching in token space; conditioned on a class label or on a text.

    Exactly one of `num_classes` and `text_hidden_size` is given. A label enters through adaLN. A text enters as tokens
    beside the image tokens of the encoder (masked where padded) and, pooled, through adaLN.

    Args:
        sample_size: side of the token grid it is made for, or (height, width); other grids run too.
        in_channels: width of an image token.
        hidden_size, num_layers, num_attention_heads: two numbers each, encoder and head.
        mlp_ratio: feed-forward width over model width, before the two thirds of the gated form.
        num_classes: number of labels; label `num_classes` means "no class" where `null_class` is on.
        text_hidden_size: width of the text states, generator.text.states_width of the text encoder.
        qk_norm, align_ffn: ours by default, off in RAE's published weights.
        feed_forward (swiglu, gelu), norm (rms, layer), rope, absolute_positions: RAE's options, for its weights.
        position_frequencies: highest and lowest of the absolute positions; see encoder.positions.
        statistics_per_position: token statistics are [channels, height, width] (RAE) instead of per channel.
        linear_velocity: the best velocity that is linear in a token, known from the tokens' covariance, is added to the
            output, so that the network learns only what is beyond it; see `linear_part`.
        prediction: what the network gives: the velocity, or clean tokens (x) of which the velocity is made.

    Buffers (statistics, Fourier and position tables) are float32 whatever the dtype of the weights, and stay so under
    `.to(dtype)`, `.bfloat16()` and from_pretrained(torch_dtype=...).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]
    _repeated_blocks = ["DiTBlock"]
    _skip_layerwise_casting_patterns = ["embedder", "norm"]
    # The saved buffers, for from_pretrained; "W" is that of t_embedder.
    _keep_in_fp32_modules = ["pos_embed", "token_mean", "token_std", "token_directions", "token_variances", "W"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] = 16,
        in_channels: int = 768,
        hidden_size: Sequence[int] = (1152, 2048),
        num_layers: Sequence[int] = (28, 2),
        num_attention_heads: Sequence[int] = (16, 16),
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        null_class: bool = True,
        text_hidden_size: int | None = None,
        qk_norm: bool = True,
        align_ffn: bool = True,
        feed_forward: str = "swiglu",
        norm: str = "rms",
        rope: bool = True,
        absolute_positions: bool = True,
        position_frequencies: Sequence[float] = OPENVISION_FREQUENCIES,
        statistics_per_position: bool = False,
        linear_velocity: bool = False,
        prediction: str = "velocity",
    ):
        super().__init__()
        self._check_config()
        width, head_width = hidden_size
        self.grid = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        self.gradient_checkpointing = False

        self.s_embedder = nn.Linear(in_channels, width)
        self.x_embedder = nn.Linear(in_channels, head_width)
        self.t_embedder = TimeEmbedding(width)
        if num_classes is not None:
            self.y_embedder = LabelEmbedding(num_classes + null_class, width)
        else:
            self.text_embedder = TextEmbedding(text_hidden_size, width)
        options = {"mlp_ratio": mlp_ratio, "qk_norm": qk_norm, "align_ffn": align_ffn,
                   "feed_forward": feed_forward, "norm": norm}  # fmt: skip
        self.blocks = nn.ModuleList(  # encoder blocks, then head blocks, in one list as RAE has them
            DiTBlock(hidden_size[part], num_attention_heads[part], **options)
            for part in (0, 1)
            for _ in range(num_layers[part])
        )
        self.s_projector = nn.Linear(width, head_width) if width != head_width else nn.Identity()
        self.final_layer = FinalLayer(head_width, in_channels, norm)

        if absolute_positions:
            self.register_buffer("pos_embed", self._sincos(*self.grid)[None])
        self.register_statistics((in_channels, *self.grid) if statistics_per_position else (in_channels, 1, 1))
        if linear_velocity:
            self.register_axes(in_channels)
        if rope:
            for part, name in enumerate(("encoder", "head")):
                cos, sin = rotary_table(*self.grid, hidden_size[part] // num_attention_heads[part])
                self.register_buffer(f"{name}_cos", cos, persistent=False)
                self.register_buffer(f"{name}_sin", sin, persistent=False)
        self._init_weights()

    @classmethod
    def preset(cls, size: str, **overrides) -> "DiTDHTransformer2DModel":
        """A model of the named size: tiny, S, B, L or XL; `overrides` are constructor arguments."""
        if size not in PRESETS:
            raise ValueError(f"There is no transformer size {size!r}: choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[size], **overrides})

    @classmethod
    def from_rae(cls, folder, weights: str = "model.safetensors", **config_overrides) -> "DiTDHTransformer2DModel":
        """RAE's own weights and configuration; see generator.rae.from_rae."""
        from generator.rae import from_rae

        return from_rae(folder, weights, **config_overrides)

    def _check_config(self) -> None:
        config = self.config
        if (config.num_classes is None) == (config.text_hidden_size is None):
            raise ValueError("Give the transformer either num_classes or text_hidden_size, and not both.")
        for name in ("hidden_size", "num_layers", "num_attention_heads"):
            if isinstance(config[name], int) or len(config[name]) != 2:
                raise ValueError(f"{name} is {config[name]!r}: give two numbers, for the encoder and for the head.")
        for width, heads in zip(config.hidden_size, config.num_attention_heads, strict=True):
            if width % heads or (width // heads) % 4:
                raise ValueError(f"hidden_size {width} over {heads} heads is {width / heads:g}: take a multiple of 4.")
        if config.feed_forward not in ("swiglu", "gelu"):
            raise ValueError(f"feed_forward is {config.feed_forward!r}: choose swiglu or gelu.")
        if config.norm not in ("rms", "layer"):
            raise ValueError(f"norm is {config.norm!r}: choose rms or layer.")
        if config.prediction not in PREDICTIONS:
            raise ValueError(f"prediction is {config.prediction!r}: choose {' or '.join(PREDICTIONS)}.")

    def _init_weights(self) -> None:
        """PyTorch's default, but: embeddings normal or Xavier; adaLN and output zero: the blocks add nothing at first.

        RAE's models are 768 wide or more; a narrower one starts with as loud a time embedding as they have, else adaLN,
        zero at the start, opens late.
        """
        for embedder in (self.s_embedder, self.x_embedder):
            nn.init.xavier_uniform_(embedder.weight)
            nn.init.zeros_(embedder.bias)
        std = 0.02 * max(1.0, 768 / self.config.hidden_size[0])
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=std)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=std)
        if self.config.num_classes is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=std)
        else:
            for layer in (self.text_embedder.proj, self.text_embedder.pooled[0], self.text_embedder.pooled[2]):
                nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(self.text_embedder.position.weight)
        layers = [layer.adaLN_modulation[-1] for layer in (*self.blocks, self.final_layer)]
        for layer in (*layers, self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _velocity(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """The network's output, shaped like noisy, as a velocity; beyond the linear part where there is one."""
        linear = self.linear_part(noisy, timestep) if self.config.linear_velocity else None
        if self.config.prediction == "velocity":
            return output if linear is None else output + linear
        time = timestep.float().clamp(min=EARLIEST_TIMESTEP)[:, None, None, None].to(noisy.dtype)
        return (noisy - output) / time if linear is None else linear - output / time

    def _sincos(self, height: int, width: int) -> Tensor:
        return sincos_table(height, width, self.config.hidden_size[0], self.config.position_frequencies)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The absolute positions [1, tokens, width] of this grid."""
        if grid == self.grid:
            return self.pos_embed
        table = self._sincos(*self.grid).to(self.pos_embed)
        if (table - self.pos_embed).abs().max() > 1e-6 + torch.finfo(table.dtype).eps:
            raise ValueError(
                f"The loaded pos_embed is not the sin-cos table, so it knows only its own grid {self.grid}, not {grid}."
            )
        return self._sincos(*grid)[None].to(self.pos_embed)

    def _rotary(self, part: int, grid: tuple[int, int], num_text: int = 0) -> tuple[Tensor, Tensor] | None:
        """The rotary tables of this grid's tokens, followed by `num_text` tokens that are not turned."""
        if not self.config.rope:
            return None
        name = ("encoder", "head")[part]
        cos, sin = getattr(self, f"{name}_cos"), getattr(self, f"{name}_sin")
        if grid != self.grid:
            cos, sin = (table.to(cos) for table in rotary_table(*grid, cos.shape[-1]))
        return signed((cos, sin), num_text)

    def _run(self, block: nn.Module, *inputs) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _condition(
        self, class_labels: Tensor | None, states: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One vector [batch, width]; for a text also its tokens [batch, text, width] and mask [batch, text]."""
        if self.config.num_classes is not None:
            if class_labels is None or states is not None:
                raise ValueError("This transformer draws classes: give class_labels and no encoder_hidden_states.")
            return self.y_embedder(class_labels), None, None
        if states is None or class_labels is not None:
            raise ValueError("This transformer draws from text: give encoder_hidden_states and no class_labels.")
        mask = torch.ones_like(states[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        tokens, pooled = self.text_embedder(states.to(self.x_embedder.bias.dtype), mask)
        return pooled, tokens, mask

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The velocity, noise minus data, shaped like hidden_states.

        hidden_states [batch, channels, height, width]: noisy normalised tokens; timestep [batch] in [0, 1], 1 is noise;
        class_labels [batch]; encoder_hidden_states [batch, text, text_hidden_size] with encoder_attention_mask
        [batch, text], 1 where there is text. Float32 tokens and times are right whatever the dtype of the weights: what
        the layers read is cast here, and the velocity has the dtype of hidden_states.
        """
        grid = tuple(hidden_states.shape[-2:])
        num_encoder = self.config.num_layers[0]
        dtype = self.x_embedder.bias.dtype  # a bias: quantised layers keep theirs in the dtype they compute in
        tokens = hidden_states.flatten(2).transpose(1, 2).to(dtype)

        time = self.t_embedder(timestep, dtype)
        vector, text, text_mask = self._condition(class_labels, encoder_hidden_states, encoder_attention_mask)
        condition = F.silu(time + vector)[:, None]

        context = self.s_embedder(tokens)
        if self.config.absolute_positions:
            context = (context + self._positions(grid)).to(dtype)
        mask, num_text = None, 0
        if text is not None:
            num_text = text.shape[1]
            mask = F.pad(text_mask, (context.shape[1], 0), value=True)[:, None, None]
            context = torch.cat([context, text], dim=1)
        rotary = self._rotary(0, grid, num_text)
        for block in self.blocks[:num_encoder]:
            context = self._run(block, context, condition, rotary, mask)
        context = F.silu(time[:, None] + context[:, : tokens.shape[1]])
        context = self.s_projector(context)

        head = self.x_embedder(tokens)
        rotary = self._rotary(1, grid)
        for block in self.blocks[num_encoder:]:
            head = self._run(block, head, context, rotary, None)
        output = self.final_layer(head, context).transpose(1, 2).unflatten(2, grid).to(hidden_states.dtype)
        velocity = self._velocity(output, hidden_states, timestep)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)
