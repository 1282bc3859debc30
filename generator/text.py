"""Texts -> states of a frozen text encoder. The empty text is the null condition, in training and sampling alike."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def longest_text(text_encoder: nn.Module, tokenizer) -> int:
    """How many tokens both the text encoder and its tokenizer can take."""
    limits = [getattr(text_encoder.config, name, None) for name in ("max_position_embeddings", "max_length")]
    return min([limit for limit in (*limits, tokenizer.model_max_length) if limit], default=1_000_000)


def tokenize(tokenizer, texts: Sequence[str], max_length: int, cut: bool = False) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both [batch, longest], padded on the right.

    A text of more than max_length tokens is refused, or with `cut` keeps the first ones and its last, the end mark.
    """
    rows = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
    if cut:
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > max_length:
            raise ValueError(
                f"The text {text[:40]!r}... has {len(row)} tokens and the text encoder reads {max_length}: shorten it."
            )
    longest = max(1, *map(len, rows))
    input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id or 0, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


@torch.no_grad()
def text_states(text_encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """States [batch, text, width] of every token, on the text encoder's device."""
    device = next(text_encoder.parameters()).device
    outputs = text_encoder(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))
    return outputs.last_hidden_state


def encode_texts(text_encoder: nn.Module, tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States [batch, text, width] and their mask [batch, text]."""
    input_ids, mask = tokenize(tokenizer, texts, longest_text(text_encoder, tokenizer))
    states = text_states(text_encoder, input_ids, mask)
    return states, mask.to(states.device)
