"""The arithmetic of docs/scaling.md is what the models say."""

from pathlib import Path

import pytest

from scripts.scaling import stage, tables


@pytest.fixture(scope="module")
def base():
    return stage("openvision3_base_128")


def test_operations_are_those_of_the_formula(base):
    tokens, width, layers = 8 * 8 + 1, 768, 12
    matrices = 12 * layers * width**2  # qkv 3, out 1, mlp 8
    attention = 4 * layers * tokens**2 * width
    # Twice in the backward pass, but for the latents, which need no gradient.
    assert base.encoder_flops == pytest.approx(3 * (2 * tokens * matrices + attention), rel=0.01)
    assert 0 <= base.samples - 4000 * 1_281_167 < 8192
    assert base.cache_bytes == 16 * 16 * 16 * 2 + 3 * 128 * 128


def test_what_is_kept_is_no_less_than_every_blocks_inner_states(base):
    # The encoder alone: both norms' inputs, qkv, attention's output and the MLP's two hidden states, bfloat16.
    assert base.model_bytes > 12 * 65 * 768 * 2 * (2 + 3 + 1 + 8)
    assert 16 * base.model_parameters < base.memory < 80e9


def test_the_document_has_these_numbers(base):
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    rows = [row for row in tables([base]).splitlines() if row and "---" not in row]
    assert len(rows) == 6 and all(row in text for row in rows)
