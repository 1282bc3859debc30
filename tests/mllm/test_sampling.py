"""Drawn tokens: their distribution, their seed, and what an LLM's own generation config stands in for."""

import pytest
import torch
from transformers import GenerationConfig

from mllm.sampling import token_choice

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])


def shares(own, rows=20_000, **options):
    """How often each token is drawn, with seed 0."""
    chosen = {"temperature": None, "top_p": None, "seed": 0, **options}
    scores = token_choice(own, **chosen)(None, LOGITS.expand(rows, -1))
    return torch.bincount(scores.argmax(dim=1), minlength=5) / rows


def test_tokens_are_drawn_as_often_as_their_softmax_says():
    for temperature in (0.5, 1.0, 3.0):
        expected = (LOGITS / temperature).softmax(dim=0)
        assert torch.allclose(shares(GenerationConfig(), temperature=temperature), expected, atol=0.015)


def test_top_p_keeps_the_likeliest_tokens_of_that_probability():
    kept = torch.where(torch.arange(5) < 2, LOGITS, -torch.inf).softmax(dim=0)  # 0.64 + 0.24 reach 0.8
    assert torch.allclose(shares(GenerationConfig(), temperature=1.0, top_p=0.8), kept, atol=0.015)


def test_the_llms_own_settings_are_the_default_and_a_callers_go_before():
    own = GenerationConfig(do_sample=True, temperature=0.5, top_k=3, top_p=0.99)
    three = torch.where(torch.arange(5) < 3, LOGITS / 0.5, -torch.inf).softmax(dim=0)
    assert torch.allclose(shares(own), three, atol=0.015)
    assert not token_choice(own, 0.0, None, None) and not token_choice(own, 0.0, 0.5, None)
    assert not token_choice(GenerationConfig(temperature=0.5), None, None, 1)  # it does not sample
    assert shares(own, temperature=2.0, top_p=0.1)[0] == 1


def test_a_seed_means_the_same_whatever_the_process_draws():
    scores = torch.zeros(4, 50)
    before = torch.get_rng_state()
    drawn = [
        token_choice(GenerationConfig(), 1.0, None, seed)(None, scores).argmax(1) for seed in (7, 7, 8, None, None)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[3], drawn[4])


@pytest.mark.parametrize(
    ("temperature", "top_p", "words"),
    [(-1.0, None, "temperature is -1.0"), (1.0, 0.0, "top_p is 0.0"), (0.0, 1.5, "top_p is 1.5")],
)
def test_options_out_of_range_are_refused(temperature, top_p, words):
    with pytest.raises(ValueError, match=words):
        token_choice(GenerationConfig(), temperature, top_p, None)
