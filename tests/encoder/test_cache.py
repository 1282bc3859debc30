"""The latent cache: right rows, refused where it does not belong, the same after a kill and by several processes."""

import io
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from encoder.cache import NO_LABEL, LatentCache
from encoder.cache_latents import cache_latents
from encoder.cache_latents import main as cache_main
from encoder.data import ImageTextStream
from encoder.vae import encode, tiny_vae
from encoder.views import Views
from training.shards import ShardError, write_shards

COLORS = ["red", "blue", "lime", "white", "black", "gray", "pink"]


def noise(index):
    file = io.BytesIO()
    pixels = np.random.default_rng(index).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def stream(tmp_path):
    """Seven pictures in three shards; those with an even number have a class."""
    samples = []
    for index, color in enumerate(COLORS):
        samples.append({"__key__": f"{index:02d}", "png": noise(index), "txt": color.encode()})
        if index % 2 == 0:
            samples[-1]["cls"] = str(index).encode()
    write_shards(tmp_path / "shards", samples, per_shard=3)
    return ImageTextStream(tmp_path / "shards")


def contents(folder):
    """Tensors and metadata by file; the bytes of equal files differ in the order of the metadata."""
    shards = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shards[path.name] = file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}
    return shards, [path.read_text() for path in folder.glob("*.json")]


def test_rows_are_what_the_vae_and_the_views_make_of_the_pictures(tmp_path, stream, small_vae):
    views = Views(3, "random", flip=True)
    assert cache_latents(stream, small_vae, 32, tmp_path / "cache", views=views, shard_size=3) == (7, {})
    cache = LatentCache([tmp_path / "cache"], small_vae)
    assert len(cache) == 21 and cache.latents.shape == (21, 16, 4, 4) and cache.image_size == 32
    pixels = torch.cat([views.pixels(pair.image, pair.key, 32) for pair in stream.pairs()])
    assert torch.equal(cache.pixels[:], pixels) and cache.pixels[0].dtype == torch.uint8
    latents = encode(small_vae, pixels.float() / 127.5 - 1)
    torch.testing.assert_close(cache.latents[:].float(), latents, atol=2e-3, rtol=2e-3)
    assert list(cache.keys) == [f"{index:02d}" for index in range(7) for _ in range(3)]
    assert list(cache.captions) == [[color] for color in COLORS for _ in range(3)]
    assert cache.labels.tolist() == [NO_LABEL if index % 2 else index for index in range(7) for _ in range(3)]
    assert len(set(cache.descriptions.tolist())) == 7 and len(set(cache.descriptions[:3].tolist())) == 1


def test_rows_are_read_as_those_of_a_tensor(tmp_path, stream, small_vae):
    cache_latents(stream, small_vae, 32, tmp_path / "cache", shard_size=3)
    opened = LatentCache([tmp_path / "cache"])
    for cache in (opened, pickle.loads(pickle.dumps(opened))):
        whole = torch.cat([load_file(path)["latents"] for path in sorted((tmp_path / "cache").glob("*.safetensors"))])
        rows = torch.tensor([6, 0, 3])
        for index in (0, 6, -1, slice(2, 5), slice(None, None, 3), rows):
            assert torch.equal(cache.latents[index], whole[index])
        assert [part.shape[0] for part in cache.latents.split(4)] == [4, 3]
        assert torch.equal(torch.cat(list(cache.latents.split(4))), whole)
        assert cache.keys[1:3] == ["01", "02"] and cache.captions[-1] == ["pink"]
        for row in (7, -8):
            with pytest.raises(IndexError, match="7 rows and no row"):
                cache.latents[row]


def test_folders_are_joined(tmp_path, stream, small_vae):
    for name, size in (("a", 32), ("b", 32), ("large", 48)):
        cache_latents(stream, small_vae, size, tmp_path / name, shard_size=4)
    joined = LatentCache([tmp_path / "a", tmp_path / "b"])
    assert len(joined) == 14 and torch.equal(joined.latents[8], joined.latents[1])
    with pytest.raises(ShardError, match="a and .*large hold pictures of 32 and 48 px"):
        LatentCache([tmp_path / "a", tmp_path / "large"])


def test_a_cache_belongs_to_its_vae_and_preprocessing(tmp_path, stream, small_vae, monkeypatch):
    cache_latents(stream, small_vae, 32, tmp_path / "cache", shard_size=3)
    torch.manual_seed(5)
    other = tiny_vae()
    with pytest.raises(ShardError, match="was made by VAE .* not by this one"):
        LatentCache([tmp_path / "cache"], other)
    with pytest.raises(ShardError, match="no latent cache at .*none; make it with"):
        LatentCache([tmp_path / "none"])
    cache_latents(stream, other, 32, tmp_path / "other", shard_size=3)
    shard = "00000-of-00001-00001.safetensors"
    (tmp_path / "other" / shard).replace(tmp_path / "cache" / shard)
    mixed = LatentCache([tmp_path / "cache"], small_vae)
    assert mixed.keys[0] == "00"
    with pytest.raises(ShardError, match=f"{shard} was made otherwise than the rest"):
        mixed.latents[3]
    monkeypatch.setattr(Views, "fingerprint", lambda self, size: "changed")
    with pytest.raises(ShardError, match="prepared by another version of encoder/images.py.*make it again"):
        LatentCache([tmp_path / "cache"], small_vae)


class Killed(Exception):
    pass


def test_a_killed_process_goes_on_behind_its_last_whole_shard(tmp_path, stream, small_vae, monkeypatch):
    cache_latents(stream, small_vae, 32, tmp_path / "whole", shard_size=2)
    pairs = ImageTextStream.pairs

    def dying(self, *arguments):
        yield from islice(pairs(self, *arguments), 5)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ImageTextStream, "pairs", dying)
        with pytest.raises(Killed):
            cache_latents(stream, small_vae, 32, tmp_path / "killed", shard_size=2)
    assert len(list((tmp_path / "killed").iterdir())) == 2
    with pytest.raises(ShardError, match="not finished .process 0 of 1.*same command"):
        LatentCache([tmp_path / "killed"])
    first = tmp_path / "killed" / "00000-of-00001-00000.safetensors"
    before = first.stat().st_mtime_ns
    assert cache_latents(stream, small_vae, 32, tmp_path / "killed", shard_size=2) == (7, {})
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert first.stat().st_mtime_ns == before


def test_several_processes_share_the_pictures(tmp_path, stream, small_vae):
    for process in (1, 0):
        with pytest.raises(ShardError, match="no latent cache|not finished"):
            LatentCache([tmp_path / "cache"])
        cache_latents(stream, small_vae, 32, tmp_path / "cache", process=process, processes=2, shard_size=3)
    cache = LatentCache([tmp_path / "cache"], small_vae)
    assert sorted(cache.keys) == [f"{index:02d}" for index in range(7)]
    alone = tmp_path / "alone"
    cache_latents(stream, small_vae, 32, alone, shard_size=3)
    rows = dict(zip(LatentCache([alone]).keys, LatentCache([alone]).pixels, strict=True))
    assert all(torch.equal(rows[key], pixels) for key, pixels in zip(cache.keys, cache.pixels, strict=True))


def test_going_on_otherwise_is_refused(tmp_path, stream, small_vae):
    out = tmp_path / "cache"
    cache_latents(stream, small_vae, 32, out, shard_size=3)
    for arguments, says in (
        ({"shard_size": 4}, "made with shard_size 3 and would be gone on with 4"),
        ({"shard_size": 3, "processes": 2}, "another number of processes than 2"),
        ({"shard_size": 3, "views": Views(2, flip=True)}, "made with preprocessing"),
    ):
        with pytest.raises(ShardError, match=says):
            cache_latents(stream, small_vae, 32, out, **arguments)
    with pytest.raises(ShardError, match="made with vae"):
        cache_latents(stream, tiny_vae(), 32, out, shard_size=3)
    write_shards(tmp_path / "shards", [{"__key__": "new", "png": noise(9), "txt": b"new"}])
    with pytest.raises(ShardError, match="made with source"):
        cache_latents(ImageTextStream(tmp_path / "shards"), small_vae, 32, out, shard_size=3)


def test_what_is_left_out_is_counted_across_a_restart(tmp_path, small_vae, capsys):
    texts = [b"words" if index % 3 else b"" for index in range(7)]
    samples = [{"__key__": f"{index}", "png": noise(index), "txt": text} for index, text in enumerate(texts)]
    samples[4]["png"] = b"a text"
    write_shards(tmp_path / "shards", samples)
    small_vae.save_pretrained(tmp_path / "vae")
    command = [f"--shards={tmp_path}/shards", f"--vae={tmp_path}/vae", "--image-size=32", f"--out={tmp_path}/cache",
               "--shard-size=2", "--device=cpu"]  # fmt: skip
    with pytest.raises(ShardError, match="sample 0 has no caption"):
        cache_main(command)
    said = []
    for _ in range(2):
        cache_main([*command, "--on-error=skip"])
        said.append(capsys.readouterr().out)
        (tmp_path / "cache" / "00000-of-00001.json").unlink()
    assert "3 pictures cached" in said[0] and "left out: 3 captions, 1 pictures" in said[0] and said[0] == said[1]


@pytest.mark.parametrize("option, says", [("--image-size=40", "multiple of 16"), ("--process=2", "between 0 and")])
def test_wrong_options_are_named(tmp_path, option, says, capsys):
    with pytest.raises(SystemExit):
        cache_main([f"--shards={tmp_path}", f"--vae={tmp_path}", "--image-size=32", f"--out={tmp_path}", option])
    assert says in capsys.readouterr().err
