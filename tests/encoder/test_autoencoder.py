"""The trained encoder as consumers use it."""

import pytest
import torch

from encoder import OpenVision3Autoencoder, OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.autoencoder import OpenVision3AutoencoderConfig

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, **SMALL},
        decoder=dict(SMALL),
        text={"vocab_size": 20, "projection_dim": 32, **SMALL},
    )
    return OpenVision3ForPreTraining(config)


@pytest.fixture
def autoencoder(pretrained, small_vae):
    return OpenVision3Autoencoder.from_pretraining(pretrained, small_vae)


def test_it_holds_what_was_trained(autoencoder, pretrained, small_vae):
    own = autoencoder.state_dict()
    trained = pretrained.state_dict() | {f"vae.{key}": value for key, value in small_vae.state_dict().items()}
    trained.pop("log_scale")
    assert own.keys() == trained.keys() and all(torch.equal(own[key], trained[key]) for key in own)


def test_a_round_trip_is_bit_equal(autoencoder, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    again = OpenVision3Autoencoder.from_pretrained(tmp_path)
    ours, theirs = autoencoder.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    pixel_values = torch.rand(2, 3, 32, 64) * 2 - 1
    results = [model.decode(model.encode(pixel_values), (2, 4)) for model in (autoencoder, again)]
    assert results[0].shape == pixel_values.shape and torch.equal(*results)


def test_it_stays_frozen_and_quiet(autoencoder, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    for model in (autoencoder, OpenVision3Autoencoder.from_pretrained(tmp_path)):
        model.train()
        assert not any(module.training for module in model.modules())
        assert not any(value.requires_grad for value in model.parameters())
        image_tokens = torch.randn(1, 4, 32)
        assert torch.equal(model.decode(image_tokens), model.decode(image_tokens))


def test_caption_log_prob_is_computed_by_hand(autoencoder):
    image_tokens = torch.randn(2, 4, 32)
    input_ids = torch.tensor([[1, 7, 8, 9, 2], [1, 5, 2, 0, 0]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    values = autoencoder.caption_log_prob(image_tokens, input_ids, attention_mask)
    for row, length in ((0, 5), (1, 3)):
        text = input_ids[row, :length]
        with torch.no_grad():
            logits = autoencoder.caption_decoder(image_tokens[row : row + 1], text[None])[0]
        terms = [torch.log_softmax(logits[i], dim=0)[text[i + 1]].item() for i in range(length - 1)]
        assert values[row].item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_features_are_normalised_and_captions_begin_with_bos(autoencoder):
    image_tokens = torch.randn(3, 4, 32)
    text = torch.randint(3, 20, (3, 5))
    for values in (autoencoder.image_features(image_tokens), autoencoder.text_features(text, torch.ones_like(text))):
        torch.testing.assert_close(values.norm(dim=-1), torch.ones(3))
    captions = autoencoder.caption(image_tokens, max_length=6)
    assert captions.shape[0] == 3 and captions.shape[1] <= 6 and (captions[:, 0] == 1).all()


def test_without_text_towers_it_says_so(autoencoder):
    config = OpenVision3AutoencoderConfig(
        encoder=autoencoder.config.encoder, decoder=autoencoder.config.decoder, vae=autoencoder.config.vae
    )
    with pytest.raises(ValueError, match="no text towers"):
        OpenVision3Autoencoder(config).caption(torch.randn(1, 4, 32))


def test_an_untrained_head_is_refused(pretrained, small_vae, tmp_path):
    config = pretrained.config
    try:
        config.contrastive_weight = 0.0
        OpenVision3Autoencoder.from_pretraining(pretrained, small_vae).save_pretrained(tmp_path)
    finally:
        config.contrastive_weight = 1.0
    model = OpenVision3Autoencoder.from_pretrained(tmp_path)
    tokens, ids, mask = torch.randn(1, 4, 32), torch.tensor([[1, 5, 2]]), torch.ones(1, 3)
    with pytest.raises(ValueError, match="text_encoder was not trained: its loss had weight 0"):
        model.text_features(ids, mask)
    assert model.caption_log_prob(tokens, ids, mask).shape == (1,)
    config.understanding_weight, weight = 0.0, config.understanding_weight
    try:
        assert OpenVision3Autoencoder.from_pretraining(pretrained, small_vae).config.untrained == [
            "text_encoder",
            "caption_decoder",
        ]
    finally:
        config.understanding_weight = weight
