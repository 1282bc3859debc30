"""Re-ranking by the encoder's own heads: their order, through their tokenizer, or a refusal."""

import copy

import pytest
import torch
from PIL import ImageChops

from encoder.text import OpenVision3TextConfig, TextEncoder
from generator import OpenVision3Pipeline
from generator.flow import picture_generators
from generator.rerank import best_of, describe, token_scores
from generator.text import states_width

PROMPT = "a red circle"
OPTIONS = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture()
def drawn(pipeline):
    """Raw tokens of eight drawings."""
    return pipeline([PROMPT] * 8, generator=picture_generators(4, range(8)), output_type="latent", **OPTIONS).images


def with_parts(pipeline, **parts) -> OpenVision3Pipeline:
    pipe = OpenVision3Pipeline(**{**pipeline.components, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_orders_as_the_heads_scores(pipeline, drawn, tokenizer):
    autoencoder, ids = pipeline.autoencoder, tokenizer([PROMPT], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        text = autoencoder.text_encoder(ids).pooler_output
        seen = autoencoder.encode(autoencoder.decode(drawn).clamp(-1, 1))
        contrast = torch.cosine_similarity(autoencoder.pool(seen), text)
        logits = autoencoder.caption_decoder(seen, ids[:, :-1].expand(8, -1))
        caption = -torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, 1:].expand(8, -1), reduction="none"
        ).mean(1)
    fidelity = -((drawn - seen) / pipeline.transformer.token_std.flatten()).square().mean((1, 2))
    both = sum((each - each.mean()) / each.std(unbiased=False) for each in (caption, fidelity))
    for name, expected in {"contrast": contrast, "caption": caption, "fidelity": fidelity, "both": both}.items():
        scores = token_scores(pipeline, drawn, PROMPT, name)
        assert torch.allclose(scores, expected, atol=1e-4), name
        assert scores.argsort().tolist() == expected.argsort().tolist(), name
        chosen = best_of(pipeline, PROMPT, 8, seed=4, score=name, **OPTIONS)
        best = pipeline.decode(pipeline.to_grid(drawn[expected.argmax()][None]))[0]
        assert max(high for _, high in ImageChops.difference(chosen, best).getextrema()) <= 1, name


def test_it_says_what_the_caption_head_reads(pipeline, tokenizer, monkeypatch):
    pictures, seen = torch.rand(2, 3, 64, 64) * 2 - 1, []

    def caption(tokens):
        seen.append(tokens)
        return tokenizer(["a red circle", "a blue square"], return_tensors="pt")["input_ids"]

    monkeypatch.setattr(pipeline.autoencoder, "caption", caption)
    assert describe(pipeline, pictures) == ["a red circle", "a blue square"]
    assert torch.equal(seen[0], pipeline.autoencoder.encode(pictures))


def test_the_text_model_of_the_pipeline_does_not_matter(pipeline, drawn, make_transformer, tokenizer_of, tmp_path):
    """Another text encoder with another vocabulary draws; the heads read through their own tokenizer, saved with it."""
    other = tokenizer_of("circle red z a".split())
    torch.manual_seed(5)
    config = OpenVision3TextConfig(
        vocab_size=len(other), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    text_encoder = TextEncoder(config)
    pipe = with_parts(
        pipeline, text_encoder=text_encoder, tokenizer=other,
        transformer=make_transformer(text_hidden_size=states_width(text_encoder)),
    )  # fmt: skip
    pipe.save_pretrained(tmp_path)
    again = OpenVision3Pipeline.from_pretrained(tmp_path)
    for each in (pipe, again):
        assert torch.allclose(token_scores(each, drawn, PROMPT), token_scores(pipeline, drawn, PROMPT), atol=1e-4)
    assert best_of(pipe, PROMPT, 2, **OPTIONS).size == (64, 64)


def test_refusals_come_before_anything_is_drawn(pipeline, tokenizer_of, monkeypatch):
    def refused(words, pipe, score="caption"):
        monkeypatch.setattr(pipe.transformer, "forward", lambda **given: pytest.fail("it drew"))
        with pytest.raises(ValueError, match=words):
            best_of(pipe, PROMPT, 2, score=score, **OPTIONS)

    refused("choose one of contrast, caption, fidelity, both", pipeline, "taste")
    refused("has no autoencoder_tokenizer", with_parts(pipeline, autoencoder_tokenizer=None))
    large = tokenizer_of([f"word{index}" for index in range(40)])
    refused("has 44 words and the encoder's text heads know 32", with_parts(pipeline, autoencoder_tokenizer=large))
    autoencoder = copy.deepcopy(pipeline.autoencoder)
    autoencoder.config.untrained = ["caption_decoder"]
    untrained = with_parts(pipeline, autoencoder=autoencoder)
    refused("caption_decoder was not trained: its loss had weight 0", untrained)
    assert token_scores(untrained, torch.randn(3, 16, 192), PROMPT, "contrast").shape == (3,)
    autoencoder.text_encoder = autoencoder.caption_decoder = None
    refused("has no text towers", untrained, "contrast")
    with pytest.raises(ValueError, match="shorten it"):
        token_scores(pipeline, torch.randn(3, 16, 192), "red " * 200)
