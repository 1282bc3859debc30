"""The objectives of VAE and encoder on a device that is not the CPU: see tests/device.py."""

import contextlib

import pytest
import torch

from encoder import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.accumulation import share_step
from encoder.linear_code import LinearCode
from encoder.train import PreTrainingObjective
from encoder.train_vae import VAEObjective, latent_std
from encoder.vae import tiny_vae
from tests.device import ELSEWHERE, OtherDevice, assert_same_there, there

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The stand-in for a device knows none, and nothing is cast here."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.fixture
def objective():
    torch.manual_seed(0)
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, **SMALL},
        decoder=dict(SMALL),
        text={"vocab_size": 20, "projection_dim": 32, **SMALL},
        pixel_loss_fraction=0.5,
        noise_tau=0.0,  # drawn on the device: another one has other numbers
    )
    return PreTrainingObjective(OpenVision3ForPreTraining(config), tiny_vae().requires_grad_(False)).train()


def batch(rows=6):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(7) < torch.randint(3, 8, (rows, 1), generator=generator)).long()
    return {
        "latents": torch.randn(rows, 16, 4, 4, generator=generator),
        "pixels": torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "input_ids": torch.randint(3, 20, (rows, 7), generator=generator) * mask,
        "attention_mask": mask,
    }


def test_pre_training(objective):
    assert_same_there(objective, batch(), atol=1e-5)  # texts are padded otherwise there


def test_pre_training_over_micro_batches(objective):
    def micro_batches():
        return [{name: value[part] for name, value in batch().items()} for part in (slice(3), slice(3, 6))]

    torch.manual_seed(2)
    here = [objective(**micro)["loss"] for micro in share_step(objective, micro_batches())]
    with OtherDevice():
        objective.to(ELSEWHERE)
        torch.manual_seed(2)
        parts = [{name: there(value) for name, value in micro.items()} for micro in micro_batches()]
        losses = [objective(**micro)["loss"] for micro in share_step(objective, parts)]
        losses[1].backward()
    torch.testing.assert_close([loss.inner for loss in losses], here)
    assert all(value.grad.device == ELSEWHERE for value in objective.parameters())


def test_noise_is_added_there(objective):
    objective.model.latent_decoder.noise_tau = 0.8
    with OtherDevice():
        objective.to(ELSEWHERE)
        loss = objective(**{name: there(value) for name, value in batch().items()})["loss"]
        loss.backward()
    assert loss.inner.isfinite() and objective.model.latent_decoder.head.weight.grad.inner.abs().sum() > 0


@pytest.mark.parametrize("name", ["latents", "pixels", "input_ids", "attention_mask"])
def test_a_stray_cpu_tensor_fails(objective, name):
    with OtherDevice(), pytest.raises(RuntimeError, match="mixes tensors|same device|device meta"):
        objective.to(ELSEWHERE)
        objective(**{key: value if key == name else there(value) for key, value in batch().items()})


def test_the_vae(monkeypatch):
    torch.manual_seed(0)
    pixel_values = torch.rand(4, 3, 16, 16) * 2 - 1
    objective = VAEObjective(tiny_vae(), 2.0, 0.5, 0.1, LinearCode.fit(torch.rand(64, 3, 16, 16) * 2 - 1))
    noise = torch.randn(4, 16, 2, 2)  # as the decoder's: another device would draw other numbers
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, device, **__: noise.to(device))
    assert_same_there(objective, {"pixel_values": pixel_values}, atol=1e-5)


def test_the_scaling_factor_is_measured_where_the_vae_is():
    torch.manual_seed(0)
    vae, pictures = tiny_vae().requires_grad_(False), [(torch.rand(16, 16, 3) * 255).byte().numpy() for _ in range(3)]
    here = latent_std(vae, pictures)
    with OtherDevice():
        vae.to(ELSEWHERE)
        assert abs(latent_std(vae, pictures) - here) < 1e-5
