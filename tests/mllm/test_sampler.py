"""Batches of one kind of row and of like length."""

import numpy as np
import pytest

from mllm.sampler import GroupedSampler, row_lengths


def _lengths(pictures, texts):
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(1, 500, pictures), *-rng.integers(0, 500, texts)]
    return [int(value) for value in rng.permutation(lengths)]


@pytest.mark.parametrize(("pictures", "texts"), [(403, 101), (64, 0), (0, 7), (5, 6)])
def test_every_row_once_in_groups_of_one_kind_the_longest_first(pictures, texts):
    lengths = _lengths(pictures, texts)
    order = list(GroupedSampler(lengths, group_size=8, seed=0))
    assert sorted(order) == list(range(len(lengths)))
    whole = pictures // 8 + texts // 8
    groups = [[lengths[index] for index in order[start : start + 8]] for start in range(0, whole * 8, 8)]
    assert all(min(group) > 0 or max(group) <= 0 for group in groups)
    longest = [max(map(abs, group)) for group in groups]
    assert not groups or longest[0] == max(longest)


def test_groups_hold_rows_of_like_length_in_random_order():
    lengths = _lengths(4_000, 0)
    order = list(GroupedSampler(lengths, group_size=8, seed=0))
    groups = np.array(lengths)[order].reshape(-1, 8)
    assert np.ptp(groups, axis=1).mean() < 15 < np.ptp(np.array(lengths).reshape(-1, 8), axis=1).mean()
    longest = groups.max(axis=1)
    assert abs(np.corrcoef(longest[1:-1], longest[2:])[0, 1]) < 0.2


def test_the_order_depends_on_epoch_and_seed_alone():
    lengths = _lengths(100, 50)
    sampler = GroupedSampler(lengths, group_size=8, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second and list(GroupedSampler(lengths, group_size=8, seed=1)) != first
    again = GroupedSampler(lengths, group_size=8, seed=0)
    assert list(again) == first
    again.set_epoch(1)
    assert list(again) == second


def test_lengths_count_words_and_the_tokens_of_pictures():
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red circle"}]
    rows = [{"image": "a.png", "conversations": turns}, {"conversations": turns[1:]}, {"conversations": turns[:0]}]
    assert row_lengths(rows, num_image_tokens=256) == [4 + 3 + 256, -3, 0]
