"""The pre-norm transformer block that the encoder, the latent decoder and both text towers share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Flax's default, which the released weights were trained with (open_clip config: norm_kwargs.eps).
LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with biases on queries, keys, values and output."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """hidden_states [batch, length, hidden_size]; attention_mask bool, broadcast to [batch, 1, length, length]."""
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `approximate` is GELU's ("none" for vision, "tanh" for text)."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, approximate: str = "none") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.attention = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.approximate = approximate

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden_states = hidden_states + self.attention(self.norm1(hidden_states), attention_mask)
        return hidden_states + self.fc2(F.gelu(self.fc1(self.norm2(hidden_states)), approximate=self.approximate))


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """OpenVision's initialisation of one module: N(0, 0.02) matrices, zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
