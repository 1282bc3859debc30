"""The order of LLaVA rows: batches of one kind and of like length, so that little of a batch is padding."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from mllm.conversation import images_of

# Rows are sorted within so many batches that were drawn together; transformers' group_by_length takes 50 too.
SORTED_BATCHES = 50


def row_lengths(rows: list[dict], num_image_tokens: int) -> list[int]:
    """Words of every row and the tokens of its pictures; negative where there is no picture (LLaVA's convention)."""
    lengths = []
    for row in rows:
        words = sum(len(str(turn.get("value")).split()) for turn in row["conversations"])
        pictures = len(images_of(row))
        lengths.append(words + pictures * num_image_tokens if pictures else -words)
    return lengths


class GroupedSampler(Sampler[int]):
    """Every row once an epoch, in a new order every epoch; a group is the batch of all processes together.

    A group holds rows with pictures or rows without, and rows of like length. The longest group is the first, so that
    memory that is too small shows at once; the others come in random order. What is left of the two kinds, less than
    a group each, comes at the end.

    Args:
        lengths: of the rows, negative where there is no picture.
        group_size: rows of a group: batch size x processes x gradient accumulation steps.
    """

    def __init__(self, lengths: list[int], group_size: int, seed: int) -> None:
        self.lengths = np.array(lengths)
        self.group_size, self.seed, self.epoch = group_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        groups, rest = [], []
        for kind in (self.lengths > 0, self.lengths <= 0):
            rows = rng.permutation(np.flatnonzero(kind))
            whole = len(rows) // self.group_size * self.group_size
            rest += rows[whole:].tolist()
            for start in range(0, whole, SORTED_BATCHES * self.group_size):
                drawn = rows[start : min(start + SORTED_BATCHES * self.group_size, whole)]
                ordered = drawn[np.argsort(-abs(self.lengths[drawn]), kind="stable")]
                groups += np.split(ordered, len(ordered) // self.group_size)
        rng.shuffle(groups)
        if groups:
            longest = max(range(len(groups)), key=lambda index: abs(self.lengths[groups[index]]).max())
            groups.insert(0, groups.pop(longest))
        for group in groups:
            yield from group.tolist()
        yield from rest
