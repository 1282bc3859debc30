"""Models small enough that a test takes milliseconds."""

import pytest
import torch

from encoder import OpenVision3Config, OpenVision3Model, OpenVision3TextConfig
from encoder.vae import tiny_vae

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


@pytest.fixture
def small_encoder():
    """Makes an encoder of width 32 for 64 px pictures (4 x 4 tokens) with weights large enough to matter."""

    def build(**settings):
        torch.manual_seed(0)
        model = OpenVision3Model(OpenVision3Config(**{"image_size": 64, **SMALL, **settings})).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name != "position_embedding":
                    value.add_(0.1 * torch.randn_like(value))
        return model

    return build


@pytest.fixture
def small_text():
    """Config of a text tower with 40 words."""
    return OpenVision3TextConfig(vocab_size=40, projection_dim=32, max_position_embeddings=16, **SMALL)


@pytest.fixture(scope="session")
def small_vae():
    torch.manual_seed(1)
    return tiny_vae().eval()
