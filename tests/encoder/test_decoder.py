"""The latent decoder and its noise."""

import pytest
import torch
from torch.nn import functional as F

from encoder import OpenVision3PreTrainingConfig
from encoder.decoder import LatentDecoder

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


def decoder(**settings):
    torch.manual_seed(0)
    model = LatentDecoder(24, 16, 2, **SMALL, **settings)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


def reconstruction_loss(model, image_tokens):
    torch.manual_seed(3)
    target = torch.randn(4, 16, 8, 8)
    return F.l1_loss(model(image_tokens), target).item()


@pytest.mark.parametrize("training", [True, False])
def test_growing_tokens_do_not_escape_the_noise(training):
    model, image_tokens = decoder(noise_space="layernorm").train(training), torch.randn(4, 16, 24)
    assert abs(reconstruction_loss(model, image_tokens) - reconstruction_loss(model, 10 * image_tokens)) < 1e-5


def test_in_raw_space_they_do():
    model, image_tokens = decoder(noise_space="raw"), torch.randn(4, 16, 24)
    assert abs(reconstruction_loss(model, image_tokens) - reconstruction_loss(model, 10 * image_tokens)) > 1e-3


@pytest.mark.parametrize("space", ["layernorm", "raw", "statistics"])
def test_noise_in_training_only(space):
    model, image_tokens = decoder(noise_space=space), torch.randn(2, 16, 24)
    assert not torch.equal(model(image_tokens), model(image_tokens))
    model.eval()
    assert torch.equal(model(image_tokens), model(image_tokens))
    quiet = decoder(noise_space=space, noise_tau=0.0)
    assert torch.equal(quiet(image_tokens), model(image_tokens))


def test_noise_strength_is_uniform_up_to_tau_and_one_per_picture():
    model = decoder(noise_space="raw", noise_tau=0.8)
    noise = model.add_noise(torch.zeros(2000, 100, 24))
    strength = noise.std(dim=(1, 2))
    assert strength.max() < 0.85 and abs(strength.mean() - 0.4) < 0.03
    within = noise[:, :50].std(dim=(1, 2)) / noise[:, 50:].std(dim=(1, 2))
    assert (within - 1).abs().max() < 0.15


def test_noise_of_a_frozen_encoder_is_in_units_of_its_channels():
    torch.manual_seed(0)
    mean, std = 5 * torch.randn(24), 10 ** torch.linspace(-2, 2, 24)
    image_tokens = mean + std * torch.randn(2000, 16, 24)
    model = decoder(noise_space="statistics", noise_tau=0.8)
    model.set_statistics(mean, std)
    noised, plain = model.add_noise(image_tokens), model.eval().add_noise(image_tokens)
    torch.testing.assert_close(plain.std(dim=(0, 1)), torch.ones(24), atol=0.02, rtol=0)
    assert plain.mean(dim=(0, 1)).abs().max() < 0.03
    power = (noised - plain).square().mean(dim=(0, 1))  # sigma ~ U[0, 0.8] has a mean square of 0.8 ** 2 / 3
    torch.testing.assert_close(power, torch.full((24,), 0.8**2 / 3), atol=0.015, rtol=0)


@pytest.mark.parametrize("rows, columns", [(4, 4), (2, 4), (3, 1)])
def test_any_grid(rows, columns):
    latents = decoder()(torch.randn(2, rows * columns, 24), (rows, columns))
    assert latents.shape == (2, 16, 2 * rows, 2 * columns)


def test_a_token_paints_its_own_patch():
    model = decoder().eval()
    with torch.no_grad():
        model.layers[0].attention.out.weight.zero_()
    image_tokens = torch.randn(1, 8, 24)
    changed = image_tokens.clone()
    changed[:, 5] = torch.randn(24)
    moved = (model(image_tokens, (2, 4)) - model(changed, (2, 4))).abs().amax(dim=1)[0] > 0
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert torch.equal(moved, expected)


def test_odd_settings_are_named():
    with pytest.raises(ValueError, match="8 image tokens do not fill a 2 x 2 grid"):
        decoder()(torch.randn(1, 8, 24))
    with pytest.raises(ValueError, match=r"choose one of layernorm, raw, statistics\."):
        decoder(noise_space="layer_norm")
    with pytest.raises(ValueError, match="noise_space 'statistics' needs a frozen encoder"):
        OpenVision3PreTrainingConfig(noise_space="statistics")
