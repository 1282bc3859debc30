"""Texts -> states of a frozen text encoder. The empty text is the null condition, in training and sampling alike.

A token's state is what the encoder made of it in its text, beside the plain embedding of the word. Contrast trains a
tower to sum a text up in one vector, and its last states forget words on the way: the tiny one's tell eight shapes
apart in half of the cases, its embeddings always (docs/log.md, 2026-11-25).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

ENCODE_BATCH = 128


def longest_text(text_encoder: nn.Module, tokenizer) -> int:
    """How many tokens both the text encoder and its tokenizer can take."""
    limits = [getattr(text_encoder.config, name, None) for name in ("max_position_embeddings", "max_length")]
    return min([limit for limit in (*limits, tokenizer.model_max_length) if limit], default=1_000_000)


def token_rows(tokenizer, texts: Sequence[str], max_length: int, cut: bool = False) -> list[list[int]]:
    """The ids of every text, as long as it is.

    Raises:
        ValueError: a text has more than max_length tokens; with `cut` it keeps the first ones and its last, the end
            mark, instead.
    """
    rows = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
    if cut:
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > max_length:
            raise ValueError(
                f"The text {text[:40]!r}... has {len(row)} tokens and the text encoder reads {max_length}: shorten it."
            )
    return rows


def pad_rows(tokenizer, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both [batch, longest], padded on the right."""
    longest = max(1, *map(len, rows))
    input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id or 0, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def tokenize(tokenizer, texts: Sequence[str], max_length: int, cut: bool = False) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both [batch, longest]; see token_rows for texts longer than max_length."""
    return pad_rows(tokenizer, token_rows(tokenizer, texts, max_length, cut))


def states_width(text_encoder: nn.Module) -> int:
    """The width of text_states: that of the encoder's last states and that of its embeddings."""
    return text_encoder.config.hidden_size + text_encoder.get_input_embeddings().embedding_dim


@torch.no_grad()
def text_states(text_encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """States [batch, text, states_width] of every token, on the device the text encoder computes on.

    The encoder's last hidden states, then its token embeddings scaled to a mean square of 1, as those have about.
    """
    device = next(text_encoder.parameters()).device
    input_ids = input_ids.to(device)
    states = text_encoder(input_ids=input_ids, attention_mask=attention_mask.to(device)).last_hidden_state
    words = text_encoder.get_input_embeddings()(input_ids.to(states.device))  # offload may have moved it meanwhile
    return torch.cat([states, F.rms_norm(words, words.shape[-1:])], dim=-1)


def encode_texts(text_encoder: nn.Module, tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States [batch, text, width] and their mask [batch, text]."""
    input_ids, mask = tokenize(tokenizer, texts, longest_text(text_encoder, tokenizer))
    states = text_states(text_encoder, input_ids, mask)
    return states, mask.to(states.device)


class TextStates:
    """States of a frozen text encoder for known texts, each distinct text computed once and kept without padding.

    states: float16 [tokens of all texts, width]; text number i has the rows offsets[i] to offsets[i + 1].
    """

    def __init__(self, states: Tensor, offsets: Tensor, numbers: dict[str, int]) -> None:
        self.states, self.offsets, self.numbers = states, offsets, numbers

    @classmethod
    def compute(
        cls, text_encoder: nn.Module, tokenizer, texts: Sequence[str], max_length: int, most_gb: float
    ) -> "TextStates | None":
        """Runs the encoder over the distinct texts, those of like length together; None if they exceed `most_gb`.

        Raises:
            ValueError: some states do not fit float16.
        """
        distinct = list(dict.fromkeys(texts))
        rows = token_rows(tokenizer, distinct, max_length, cut=True)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        offsets = torch.tensor([0, *(len(rows[number]) for number in order)]).cumsum(0)
        total, width = int(offsets[-1]), states_width(text_encoder)
        if 2 * total * width / 1e9 > most_gb:
            return None
        states = torch.empty(total, width, dtype=torch.float16)
        for start in tqdm(range(0, len(order), ENCODE_BATCH), desc="text states", mininterval=2):
            chosen = order[start : start + ENCODE_BATCH]
            input_ids, mask = pad_rows(tokenizer, [rows[number] for number in chosen])
            encoded = text_states(text_encoder, input_ids, mask).cpu()
            states[offsets[start] : offsets[start + len(chosen)]] = encoded[mask.bool()].half()
        if not torch.isfinite(states).all():
            raise ValueError("Some text states do not fit float16: train with cache_gb=0, which encodes them online.")
        return cls(states, offsets, {distinct[number]: place for place, number in enumerate(order)})

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States float16 [batch, longest, width], zero where there is no text, and their mask [batch, longest]."""
        numbers = torch.tensor([self.numbers[text] for text in texts])
        first, last = self.offsets[numbers], self.offsets[numbers + 1]
        places = torch.arange(max(1, int((last - first).max())))
        mask = places < (last - first)[:, None]
        batch = self.states.new_zeros(*mask.shape, self.states.shape[1])
        batch[mask] = self.states[(first[:, None] + places)[mask]]
        return batch, mask.long()
