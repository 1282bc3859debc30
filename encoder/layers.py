"""What the encoder, the latent decoder and both text towers share: the block, its first weights, strict loading."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

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


class Block(GradientCheckpointingLayer):
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
    """OpenVision's initialisation of one module: N(0, 0.02) matrices, zero biases, unit norms.

    Its towers are 768 wide or more. A matrix of fewer inputs starts with as large an output as one of 768 would give:
    at 0.02 the tiny encoder (192 wide) needs about twice the steps.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02 * max(1.0, 768 / module.in_features) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class StrictLoading:
    """Comes before `PreTrainedModel` among the bases: transformers only warns of weights it lacks or cannot place."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:
        """As in transformers.

        Raises:
            ValueError: the folder's weights are not exactly those of this class and config.
        """
        kwargs["ignore_mismatched_sizes"] = True  # for the sentence below instead of transformers' table
        model, report = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        for kind, problem in (
            ("missing_keys", "is not in the file"),
            ("unexpected_keys", "does not belong to the model"),
            ("mismatched_keys", "has another shape than the config says"),
        ):
            if report[kind]:
                first = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[kind])[0]
                raise ValueError(
                    f"The weights in {folder} do not fit {cls.__name__}: {first} {problem} "
                    f"({len(report[kind])} such); load the folder with the class that wrote it."
                )
        return (model, report) if output_loading_info else model
