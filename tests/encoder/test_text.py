"""Both text towers: who sees whom, and how captions end."""

import pytest
import torch

from encoder.text import CaptionDecoder, TextEncoder, prefix_mask

BOS, EOS, PAD = 1, 2, 0


@pytest.fixture
def caption_decoder(small_text):
    torch.manual_seed(0)
    model = CaptionDecoder(small_text, token_size=24).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return model


@pytest.fixture
def text_encoder(small_text):
    torch.manual_seed(0)
    return TextEncoder(small_text).eval()


def test_changing_a_caption_token_moves_no_logit_before_it(caption_decoder):
    image_tokens, input_ids = torch.randn(2, 4, 24), torch.randint(3, 40, (2, 10))
    logits = caption_decoder(image_tokens, input_ids)
    for position in range(10):
        changed = input_ids.clone()
        changed[:, position] = (changed[:, position] - 3 + 1) % 37 + 3
        other = caption_decoder(image_tokens, changed)
        torch.testing.assert_close(other[:, :position], logits[:, :position], atol=1e-6, rtol=0)
        assert (other[:, position] - logits[:, position]).abs().max() > 1e-3


def test_every_logit_depends_on_every_image_token(caption_decoder):
    image_tokens, input_ids = torch.randn(1, 4, 24, requires_grad=True), torch.randint(3, 40, (1, 5))
    logits = caption_decoder(image_tokens, input_ids)
    for position in range(5):
        (gradient,) = torch.autograd.grad(logits[0, position, 7], image_tokens, retain_graph=True)
        assert (gradient.abs().sum(dim=-1) > 0).all()


def test_image_rows_are_unaffected_by_text(caption_decoder):
    rows = []
    hook = caption_decoder.layers[-1].register_forward_hook(lambda module, inputs, output: rows.append(output[:, :4]))
    image_tokens = torch.randn(1, 4, 24)
    for seed in range(2):
        torch.manual_seed(seed)
        caption_decoder(image_tokens, torch.randint(3, 40, (1, 6)))
    hook.remove()
    torch.testing.assert_close(rows[0], rows[1], atol=1e-6, rtol=0)


def test_prefix_mask_is_written_out():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert prefix_mask(2, 2, torch.device("cpu")).int().tolist() == expected


def test_the_size_of_the_image_tokens_does_not_matter(caption_decoder):
    image_tokens, input_ids = torch.randn(1, 4, 24), torch.randint(3, 40, (1, 5))
    ours, theirs = (caption_decoder(scale * image_tokens, input_ids) for scale in (1, 10))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_padding_does_not_change_the_text_encoder(text_encoder):
    text = torch.randint(3, 40, (1, 6))
    alone = text_encoder(text, torch.ones_like(text))
    padded = torch.cat([text, torch.full((1, 5), PAD)], dim=1)
    mask = (torch.arange(11) < 6).long()[None]
    together = text_encoder(padded, mask)
    # Not closer: a matrix of another height is summed in another order, and which order the CPU's BLAS decides.
    torch.testing.assert_close(together.pooler_output, alone.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.last_hidden_state[:, :6], alone.last_hidden_state, atol=1e-5, rtol=0)
    garbage = padded.clone()
    garbage[:, 6:] = 9
    assert torch.equal(text_encoder(garbage, mask)[1], together[1])  # of the same shape: summed in the same order


def test_the_text_encoder_looks_both_ways_and_refuses_long_texts(text_encoder):
    text = torch.randint(3, 40, (1, 6))
    changed = text.clone()
    changed[:, 5] = 3 if text[0, 5] != 3 else 4
    assert (text_encoder(text)[0][:, 0] - text_encoder(changed)[0][:, 0]).abs().max() > 0
    with pytest.raises(ValueError, match="17 tokens and the text encoder takes 16"):
        text_encoder(torch.zeros(1, 17, dtype=torch.long))


def scripted(caption_decoder, monkeypatch, script):
    """Makes row b of the decoder say script[b], whatever it sees."""

    def hidden_states(image_tokens, input_ids):
        step = input_ids.shape[1] - 1
        words = torch.tensor([row[step] for row in script])
        return torch.nn.functional.one_hot(words, 40).float()[:, None]

    monkeypatch.setattr(caption_decoder, "hidden_states", hidden_states)
    monkeypatch.setattr(caption_decoder, "head", torch.nn.Identity())


def test_captions_end_with_eos_and_then_padding(caption_decoder, monkeypatch):
    scripted(caption_decoder, monkeypatch, [[5, EOS, 7, 8, 9], [5, 6, 7, EOS, 9]])
    ids = caption_decoder.generate(torch.randn(2, 4, 24), BOS, EOS, max_length=10)
    assert ids.tolist() == [[BOS, 5, EOS, PAD, PAD], [BOS, 5, 6, 7, EOS]]


def test_captions_stop_at_max_length(caption_decoder, monkeypatch):
    scripted(caption_decoder, monkeypatch, [[5] * 20])
    for max_length, length in ((4, 4), (100, 16)):
        assert caption_decoder.generate(torch.randn(1, 4, 24), BOS, EOS, max_length).shape == (1, length)


def test_greedy_captions_are_the_most_likely_words(caption_decoder):
    image_tokens = torch.randn(3, 4, 24)
    ids = caption_decoder.generate(image_tokens, BOS, EOS, max_length=8)
    best = caption_decoder(image_tokens, ids[:, :-1]).argmax(dim=-1)
    for row, words in zip(ids.tolist(), best.tolist(), strict=True):
        length = row.index(EOS) if EOS in row else len(row) - 1
        assert row[1 : length + 1] == words[:length]
        assert set(row[length + 1 :]) <= {PAD}
