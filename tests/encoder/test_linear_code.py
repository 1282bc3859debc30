"""The linear code, and the VAE objective that draws latents towards it."""

import pytest
import torch

from encoder.linear_code import LinearCode
from encoder.train_vae import VAEObjective
from encoder.vae import tiny_vae


@pytest.fixture
def pictures() -> torch.Tensor:
    """Smooth random pictures [8, 3, 32, 32] in [-1, 1]."""
    coarse = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").tanh()


def test_codes_of_the_fitted_pictures_are_white(pictures):
    codes = LinearCode.fit(pictures).encode(pictures)
    assert codes.shape == (8, 16, 4, 4)
    rows = codes.movedim(1, -1).flatten(0, 2)
    assert rows.mean(dim=0).abs().max() < 1e-3
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(16), atol=1e-2, rtol=0)


def test_decoding_is_the_projection_onto_the_code(pictures):
    code = LinearCode.fit(pictures)
    once = code.decode(code.encode(pictures))
    torch.testing.assert_close(code.decode(code.encode(once)), once, atol=1e-3, rtol=0)
    error, signal = ((once - pictures) ** 2).mean(), pictures.var()
    assert error < 0.05 * signal  # 16 of 192 directions hold smooth pictures


def test_linear_weight_adds_the_distance_it_reports(pictures):
    vae, code = tiny_vae(), LinearCode.fit(pictures)
    losses = {}
    for weight in (0.0, 0.5):
        torch.manual_seed(0)  # the posterior is sampled
        losses[weight] = VAEObjective(vae, 2.0, 0.0, weight, code)(pictures)
    added = losses[0.5]["loss"] - losses[0.0]["loss"]
    torch.testing.assert_close(added, 0.5 * losses[0.5]["losses"]["linear"], rtol=1e-4, atol=1e-5)


def test_a_code_works_where_its_pictures_are(pictures):
    code = LinearCode.fit(pictures)  # on the CPU; "meta" stands for a GPU
    codes = code.encode(pictures.to("meta"))
    assert codes.device.type == code.decode(codes).device.type == "meta"
