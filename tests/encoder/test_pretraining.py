"""The joint model: saving, sizes of the presets, Auto classes, a seat in a diffusers pipeline."""

import diffusers
import pytest
import torch
from transformers import AutoConfig, AutoModel

import encoder
from encoder import (
    OpenVision3Autoencoder,
    OpenVision3Config,
    OpenVision3ForPreTraining,
    OpenVision3PreTrainingConfig,
    TextEncoder,
)
from encoder.decoder import DECODER_PRESETS
from encoder.vae import tiny_vae

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


def build(**settings):
    torch.manual_seed(0)
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, **SMALL},
        decoder=dict(SMALL),
        text={"vocab_size": 20, "projection_dim": 32, **SMALL},
        **settings,
    )
    return OpenVision3ForPreTraining(config).eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    return dict(
        latents=torch.randn(3, 16, 4, 4, generator=generator),
        input_ids=torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0], [1, 9, 4, 2]]),
        attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]),
    )


def everything(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same(ours, theirs):
    ours, theirs = everything(ours), everything(theirs)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("noise_space", ["layernorm", "raw"])
def test_saving_and_loading_is_bit_equal(tmp_path, noise_space):
    model = build(noise_space=noise_space, noise_tau=0.3)
    for value in everything(model).values():
        value.data.add_(torch.randn_like(value))  # nothing may come back from the initialisation
    model.save_pretrained(tmp_path)
    again = OpenVision3ForPreTraining.from_pretrained(tmp_path)
    assert same(model, again) and again.config.noise_tau == 0.3
    assert torch.equal(model(**batch()).loss, again(**batch()).loss)


def test_auto_classes_know_every_folder(tmp_path):
    model = build()
    for name, part in (
        ("pretraining", model),
        ("encoder", model.encoder),
        ("text", model.text_encoder),
        ("autoencoder", OpenVision3Autoencoder.from_pretraining(model, tiny_vae())),
    ):
        part.save_pretrained(tmp_path / name)
        again = AutoModel.from_pretrained(tmp_path / name)
        assert type(again) is type(part) and same(part, again), name
        assert type(AutoConfig.from_pretrained(tmp_path / name)) is type(part.config)


def test_a_folder_of_another_class_is_refused(tmp_path):
    build().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit TextEncoder"):
        TextEncoder.from_pretrained(tmp_path)


def test_the_package_does_not_shadow_its_modules():
    assert encoder.model.OpenVision3Config is OpenVision3Config


def test_it_sits_in_a_diffusers_pipeline(tmp_path):
    class Seat(diffusers.DiffusionPipeline):
        def __init__(self, autoencoder: OpenVision3Autoencoder) -> None:
            super().__init__()
            self.register_modules(autoencoder=autoencoder)

    model = OpenVision3Autoencoder.from_pretraining(build(), tiny_vae())
    Seat(model).save_pretrained(tmp_path)
    again = OpenVision3Autoencoder.from_pretrained(tmp_path / "autoencoder")
    assert same(model, again)
    pixel_values = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(model.decode(model.encode(pixel_values)), again.decode(again.encode(pixel_values)))


@pytest.mark.parametrize("size, decoder", [("tiny", "tiny"), ("base", "base"), ("large", "base")])
def test_presets_pair_the_papers_decoder(size, decoder):
    config = OpenVision3PreTrainingConfig.preset(size, vocab_size=32000, image_size=128)
    assert config.decoder == DECODER_PRESETS[decoder] and config.encoder["image_size"] == 128
    # Table 1 of the paper.
    assert (config.latent_weight, config.contrastive_weight) == (0.4, 1.0)
    assert (config.reconstruction_weight, config.understanding_weight) == (0.5, 1.0)
    config = OpenVision3PreTrainingConfig.preset(size, 32000, 128, decoder_size="medium", noise_tau=0.5)
    assert config.decoder["hidden_size"] == 512 and config.noise_tau == 0.5
    with torch.device("meta"):
        model = OpenVision3ForPreTraining(config)
    assert model.encoder.config.hidden_size == config.encoder["hidden_size"]


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="decoder preset 'huge'"):
        OpenVision3PreTrainingConfig.preset("base", 100, 128, decoder_size="huge")
    with pytest.raises(ValueError, match="noise_tua"):
        OpenVision3PreTrainingConfig.preset("base", 100, 128, noise_tua=1.0)
    with pytest.raises(ValueError, match="pixel_loss_fraction"):
        build(pixel_loss_fraction=1.5)
    with pytest.raises(ValueError, match="pixel_values"):
        build()(**batch(), decode_latents=lambda latents: latents)


def test_no_share_of_the_pixels_means_no_pixel_loss():
    pixels = dict(pixel_values=torch.zeros(3, 3, 32, 32), decode_latents=lambda latents: latents.new_zeros(()))
    output = build(pixel_loss_fraction=0.0)(**batch(), **pixels)
    assert "pixel" not in output.losses and output.loss.isfinite()


def test_tokens_of_any_size_reconstruct_alike():
    model, inputs = build().train(), batch()
    losses = []
    for factor in (1.0, 10.0):
        torch.manual_seed(3)
        tokens = factor * model.encoder(latents=inputs["latents"]).last_hidden_state
        tokens = tokens / tokens.detach().std() * factor  # of ordinary size: 1 and 10
        losses.append((model.latent_decoder(tokens, (2, 2)) - inputs["latents"]).abs().mean().item())
    assert abs(losses[0] - losses[1]) < 1e-5


def test_measuring_gradients_reports_each_term_and_changes_none():
    plain, once, twice = build(), build(), build(understanding_weight=2.0)
    losses = {}
    for name, model, measure in (("plain", plain, False), ("once", once, True), ("twice", twice, True)):
        output = model(**batch(), measure_gradients=measure)
        output.loss.backward()
        losses[name] = output.losses
    assert not any(key.startswith("gradient/") for key in losses["plain"])
    for ours, theirs in zip(plain.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for term, factor in (("latent", 1.0), ("caption", 2.0), ("contrastive", 2.0)):
        assert losses["once"][f"gradient/{term}"] > 0
        torch.testing.assert_close(losses["twice"][f"gradient/{term}"], factor * losses["once"][f"gradient/{term}"])
    alone = build(reconstruction_weight=0.0, contrastive_weight=0.0)
    alone(**batch()).loss.backward()
    gradient = torch.cat([value.grad.flatten() for value in alone.encoder.parameters()])
    torch.testing.assert_close(losses["once"]["gradient/caption"], gradient.norm())


def test_grouping_texts_by_length_changes_no_loss_and_no_gradient(monkeypatch):
    results = []
    for groups in (1, 3):
        monkeypatch.setattr("encoder.pretraining.TEXT_GROUPS", groups)
        model = build()
        output = model(**batch())
        output.loss.backward()
        results.append((output.losses, [parameter.grad for parameter in model.parameters()]))
    # A group is summed in another order than the whole batch; the CPU's BLAS decides which.
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)
