"""The parts of DiT^DH: norms, feed-forwards, attention with 2D rotary positions, adaLN blocks, time embedding.

The rules are those of RAE (Diffusion Transformers with Representation Autoencoders), so that its weights compute the
same numbers here; parameter names follow its checkpoints where the two coincide.
"""

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.positions import OPENVISION_FREQUENCIES

FFN_MULTIPLE = 64  # aligned feed-forward widths are rounded up to this, which matrix units like


class BuffersKeepDtype:
    """Comes before `nn.Module` among the bases: buffers move to another device but keep their dtype, float32.

    bfloat16 would round token statistics by 0.4%, and the angles of Fourier features by whole turns.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.bfloat16` and their like call."""
        buffers = {id(buffer) for buffer in self.buffers()}

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            keep = id(tensor) in buffers and result.dtype != tensor.dtype
            return tensor.to(result.device) if keep else result

        return super()._apply(moved, recurse)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 whatever the dtype."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def normalize(self, hidden: Tensor) -> Tensor:
        """x / rms(x), without the weight."""
        return F.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps).type_as(hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.normalize(hidden) * self.weight


def make_norm(kind: str, dim: int) -> nn.Module:
    """kind: rms (learned weight) or layer (LayerNorm without parameters)."""
    return RMSNorm(dim) if kind == "rms" else nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)


def ffn_width(dim: int, ratio: float, feed_forward: str, align: bool) -> int:
    """Hidden width of a feed-forward: two thirds for the gated one, rounded up to a multiple of 64 if `align`."""
    width = int(dim * ratio)
    if feed_forward == "swiglu":
        width = int(2 / 3 * width)
    return -(-width // FFN_MULTIPLE) * FFN_MULTIPLE if align else width


class SwiGLU(nn.Module):
    def __init__(self, dim: int, width: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * width)
        self.w3 = nn.Linear(width, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, value = self.w12(hidden).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class GELUFeedForward(nn.Module):
    def __init__(self, dim: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden), approximate="tanh"))


def rotary_table(height: int, width: int, head_dim: int, theta: float = 1e4) -> tuple[Tensor, Tensor]:
    """cos and sin [height * width, head_dim]: the first half of a head turns with the row, the second with the column.

    The tables are for neighbouring pairs, every angle twice.
    """
    axis_dim = head_dim // 2
    frequencies = 1.0 / theta ** (torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim)

    def angles(length: int) -> Tensor:
        positions = torch.arange(length, dtype=torch.float32)
        return (positions[:, None] * frequencies).repeat_interleave(2, dim=-1)

    rows = angles(height)[:, None].expand(height, width, axis_dim)
    columns = angles(width)[None].expand(height, width, axis_dim)
    table = torch.cat([rows, columns], dim=-1).reshape(height * width, head_dim)
    return table.cos(), table.sin()


def rotate(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns neighbouring pairs (a, b) of the last axis to (a cos - b sin, b cos + a sin).

    heads [batch, tokens, heads, head_dim]; rotary: cos and sin with the sign of each half, [tokens, 1, head_dim].
    """
    cos, signed_sin = rotary
    swapped = heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(heads * cos, swapped, signed_sin)


def signed(rotary: tuple[Tensor, Tensor], num_text: int = 0) -> tuple[Tensor, Tensor]:
    """The tables as `rotate` takes them, followed by rows for `num_text` tokens that are not turned."""
    cos, sin = rotary
    sin = torch.stack([-sin[:, 0::2], sin[:, 1::2]], dim=-1).flatten(-2)
    cos, sin = F.pad(cos, (0, 0, 0, num_text), value=1.0), F.pad(sin, (0, 0, 0, num_text))
    return cos[:, None], sin[:, None]


def sincos_table(height: int, width: int, dim: int, frequencies: Sequence[float] = OPENVISION_FREQUENCIES) -> Tensor:
    """[height * width, dim]: sin and cos of the column, then sin and cos of the row (as MAE and DiT).

    frequencies: the highest, and the lowest that is not reached any more, radians per patch.
    """
    highest, lowest = frequencies
    frequencies = highest / (highest / lowest) ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4.0))
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    parts = [wave(axis.reshape(-1, 1) * frequencies) for axis in (columns, rows) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=-1).float()


class Attention(nn.Module):
    """Self-attention with a fused projection; with `qk_norm` queries and keys are normalised per head."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool, norm: str):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        head_norm = RMSNorm if norm == "rms" else nn.LayerNorm
        self.q_norm = head_norm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = head_norm(dim // num_heads) if qk_norm else nn.Identity()

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """hidden [batch, tokens, dim]; mask [batch, 1, 1, tokens], True where a token may be attended to."""
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in self.qkv(hidden).chunk(3, dim=-1))
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate(query, rotary).to(value.dtype), rotate(key, rotary).to(value.dtype)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))


def modulate(norm: nn.Module, hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(hidden) * (1 + scale) + shift, in two passes over hidden."""
    if isinstance(norm, RMSNorm):
        return torch.addcmul(shift, norm.normalize(hidden), norm.weight * (1 + scale))
    return torch.addcmul(shift, norm(hidden), 1 + scale)


class DiTBlock(nn.Module):
    """Attention and feed-forward, each with shift, scale and gate from the condition (adaLN, zero at the start)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qk_norm: bool,
        align_ffn: bool,
        feed_forward: str,
        norm: str,
    ):
        super().__init__()
        width = ffn_width(dim, mlp_ratio, feed_forward, align_ffn)
        self.norm1 = make_norm(norm, dim)
        self.attn = Attention(dim, num_heads, qk_norm, norm)
        self.norm2 = make_norm(norm, dim)
        self.mlp = SwiGLU(dim, width) if feed_forward == "swiglu" else GELUFeedForward(dim, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(
        self, hidden: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None = None
    ) -> Tensor:
        """hidden [batch, tokens, dim]; condition [batch, 1, dim] or one per token [batch, tokens, dim]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        hidden = torch.addcmul(hidden, gate1, self.attn(modulate(self.norm1, hidden, shift1, scale1), rotary, mask))
        return torch.addcmul(hidden, gate2, self.mlp(modulate(self.norm2, hidden, shift2, scale2)))


class FinalLayer(nn.Module):
    def __init__(self, dim: int, out_channels: int, norm: str):
        super().__init__()
        self.norm_final = make_norm(norm, dim)
        self.linear = nn.Linear(dim, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final, hidden, shift, scale))


class TimeEmbedding(nn.Module):
    """timestep [batch] in [0, 1] -> [batch, dim]: random Fourier features (frozen, saved), then two layers."""

    def __init__(self, dim: int, num_frequencies: int = 256):
        super().__init__()
        self.register_buffer("W", torch.randn(num_frequencies, dtype=torch.float32))
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """dtype: that of the two layers; the features are computed in float32."""
        angles = timestep.float()[:, None] * self.W * (2 * math.pi)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype))


class LabelEmbedding(nn.Module):
    """class_labels [batch] -> [batch, dim]; the last row, number num_classes, means "no class"."""

    def __init__(self, num_rows: int, dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_rows, dim)

    def forward(self, class_labels: Tensor) -> Tensor:
        return self.embedding_table(class_labels)


class TextEmbedding(nn.Module):
    """Text states -> tokens that stand beside the image tokens, and one vector for the whole text.

    A token also says which of the text's it is. States tell that badly: of contrast's tower, a shape word's name its
    own object's colour as often as the other object's (62 and 59%, docs/log.md, 2026-11-26).
    """

    def __init__(self, text_hidden_size: int, dim: int):
        super().__init__()
        self.norm = RMSNorm(text_hidden_size)
        self.proj = nn.Linear(text_hidden_size, dim)
        self.position = nn.Linear(dim, dim, bias=False)
        self.pooled = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """states [batch, text, text_hidden_size], mask [batch, text] -> [batch, text, dim] and [batch, dim]."""
        states = states.masked_fill(~mask[..., None], 0.0)  # whatever padding holds, NaN included, is gone here
        order = sincos_table(1, states.shape[1], 2 * self.proj.out_features)[:, : self.proj.out_features]
        tokens = self.proj(self.norm(states)) + self.position(order.to(states))
        weights = mask[..., None].to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
        return tokens, self.pooled(mean)
