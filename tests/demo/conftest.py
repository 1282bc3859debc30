"""A random family in the layout that `make tiny` leaves, exported as it would ship.

Only test_browser.py takes the trained one in demo/checkpoints, and fails where that is missing.
"""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from demo.export import CACHE, export
from encoder import OpenVision3Autoencoder
from encoder.cache import vae_hash
from encoder.cache_latents import cache_latents
from encoder.data import ImageTextStream
from encoder.lineage import weights_hash, write_parents
from encoder.tokenizer import load_tokenizer
from generator import DiTDHTransformer2DModel, OpenVision3Pipeline
from generator.pipeline import make_scheduler
from generator.text import states_width
from training.shapes.write import write


@pytest.fixture(scope="session")
def run(family, tmp_path_factory):
    """A run folder with encoder/autoencoder, mllm, generator and a latent cache, all random."""
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    autoencoder = OpenVision3Autoencoder.from_pretrained(family / "autoencoder")
    autoencoder.save_pretrained(root / "encoder" / "autoencoder")
    tokenizer = load_tokenizer(family / "tokenizer")
    tokenizer.save_pretrained(root / "encoder" / "autoencoder" / "tokenizer")
    write_parents(root / "encoder", {"vae": vae_hash(autoencoder.vae)})
    shutil.copytree(family / "mllm", root / "mllm")
    transformer = DiTDHTransformer2DModel.preset(
        "tiny", sample_size=[2, 2], in_channels=32, text_hidden_size=states_width(autoencoder.text_encoder)
    )
    pipeline = OpenVision3Pipeline(transformer, autoencoder, make_scheduler(1.0), autoencoder.text_encoder, tokenizer)
    pipeline.save_pretrained(root / "generator")
    write_parents(root / "generator", {"encoder": weights_hash(root / "encoder" / "autoencoder")})
    write(root, "train", count=80, size=32)
    cache_latents(ImageTextStream(root / "train" / "shards"), autoencoder.vae, 32, root / CACHE)
    return root


@pytest.fixture(scope="session")
def checkpoints(run, tmp_path_factory):
    """The exported family."""
    out = tmp_path_factory.mktemp("checkpoints")
    export(run, out)
    return out


@pytest.fixture()
def own_cache(tmp_path, monkeypatch):
    """An empty cache for assembled families."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
