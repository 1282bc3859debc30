"""A latent decoder for a frozen encoder, from a released checkpoint to an autoencoder's folder."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from encoder import OpenVision3Autoencoder
from encoder.cache import LatentCache
from encoder.cache_latents import main as cache_latents
from encoder.data import CachedPairs
from encoder.decoder import LatentDecoder
from encoder.train_decoder import main, store_statistics
from training.shards import write_shards

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
SIZE, COUNT = 32, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory, small_vae):
    """A VAE's folder and a cache of six pictures made with it."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    samples = []
    for index in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(file, "PNG")
        samples.append({"__key__": str(index), "png": file.getvalue(), "txt": b"noise"})
    write_shards(root / "shards", samples)
    small_vae.save_pretrained(root / "vae")
    cache_latents(
        ["--shards", f"{root}/shards", "--vae", f"{root}/vae", "--image-size", f"{SIZE}", "--out", f"{root}/cache"]
    )
    return root


def train(data, out, *overrides):
    recipe = out / "recipe.yaml"
    recipe.write_text(
        f"{{output_dir: {out}, cache: {data}/cache, vae: {data}/vae, encoder: {out}/released, size: tiny, "
        "pixel_loss_fraction: 0.5, trainer: {max_steps: 2, per_device_train_batch_size: 4, use_cpu: true}}"
    )
    main([str(recipe), *overrides])


def test_statistics_are_those_of_the_cached_pictures(data, small_encoder):
    encoder, dataset = small_encoder(), CachedPairs(LatentCache([data / "cache"]), seed=0)
    model = LatentDecoder(32, 16, 2, **SMALL, noise_space="statistics")
    store_statistics(model, encoder, dataset)
    with torch.no_grad():
        tokens = [encoder(latents=dataset[index]["latents"][None]).last_hidden_state[0] for index in range(COUNT)]
    tokens = torch.cat(tokens).numpy().astype(np.float64)
    np.testing.assert_allclose(model.token_mean, tokens.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(model.token_std, tokens.std(axis=0), atol=1e-5)


def test_a_released_encoder_becomes_an_autoencoder(data, small_encoder, tmp_path):
    released = small_encoder(image_size=SIZE, position_table=True)
    released.save_open_clip(tmp_path / "released")
    train(data, tmp_path)
    model = OpenVision3Autoencoder.from_pretrained(tmp_path / "autoencoder")
    own = model.encoder.state_dict()
    assert own.keys() == released.state_dict().keys()
    assert all(torch.equal(own[name], value) for name, value in released.state_dict().items())
    assert model.latent_decoder.token_std.min() > 0 and not model.latent_decoder.token_std.eq(1).any()
    pixel_values = torch.rand(1, 3, SIZE, 2 * SIZE) * 2 - 1
    assert model.decode(model.encode(pixel_values), (2, 4)).shape == pixel_values.shape
    with pytest.raises(ValueError, match="no text towers"):
        model.caption(model.encode(pixel_values))

    small_encoder(image_size=SIZE, position_table=True, hidden_size=48).save_open_clip(tmp_path / "other")
    with pytest.raises(ValueError, match="started on the encoder .* start anew in another output_dir"):
        train(data, tmp_path, f"encoder={tmp_path}/other")

    train(data, tmp_path, f"init_from={tmp_path}/autoencoder", f"output_dir={tmp_path}/more", "trainer.learning_rate=0")
    more = OpenVision3Autoencoder.from_pretrained(tmp_path / "more" / "autoencoder").state_dict()
    assert all(torch.equal(more[name], value) for name, value in model.state_dict().items())


def test_a_dry_run_shows_a_batch_and_what_it_takes(data, small_encoder, tmp_path, capsys):
    small_encoder(image_size=SIZE, position_table=True).save_open_clip(tmp_path / "released")
    train(data, tmp_path, "dry_run=true")
    text = capsys.readouterr().out
    assert "batch latents: [4, 16, 4, 4]" in text and "peak memory" in text and "estimate for 2 steps" in text
    picture, pixels = Image.open(tmp_path / "dry_run.png"), LatentCache([data / "cache"]).pixels
    assert picture.size == (2 * SIZE, 2 * SIZE)
    np.testing.assert_array_equal(np.asarray(picture)[SIZE:, :SIZE], pixels[2].permute(1, 2, 0))
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "autoencoder").exists()


def test_an_unknown_size_is_named(data, tmp_path):
    with pytest.raises(ValueError, match="no decoder preset 'huge'; choose one of tiny"):
        train(data, tmp_path, "size=huge")
