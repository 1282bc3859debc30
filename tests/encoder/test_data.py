"""Image-text pairs: damage is named, a cache belongs to its VAE, batches hold no description twice."""

import io
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from encoder.cache_latents import cache_latents
from encoder.data import CachedPairs, DistinctSampler, ImageTextShards, load_cached
from encoder.vae import encode, tiny_vae
from training.shards import ShardError, write_shards


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "PNG")
    return file.getvalue()


def written(folder, *samples):
    write_shards(folder, [{"__key__": f"{index:04d}", **sample} for index, sample in enumerate(samples)])
    return ImageTextShards(folder)


def test_captions_come_from_json_or_txt(tmp_path):
    shards = written(
        tmp_path,
        {"png": png(), "json": json.dumps({"captions": ["a", "b"], "description": "d"}).encode()},
        {"png": png(), "json": b'{"caption": "one"}'},
        {"png": png(), "txt": b" words \n"},
        {"png": png(), "txt": b"beside", "json": b'{"width": 32}'},
    )
    assert [(row.captions, row.description) for row in map(shards.__getitem__, range(4))] == [
        (["a", "b"], "d"),
        (["one"], "one"),
        (["words"], "words"),
        (["beside"], "beside"),
    ]
    assert len(ImageTextShards(tmp_path, count=3)) == 3 and len(ImageTextShards(tmp_path, count=9)) == 4


@pytest.mark.parametrize(
    "sample, says",
    [
        ({"txt": b"words"}, "no picture"),
        ({"png": b"damaged", "txt": b"words"}, "cannot be read as a picture"),
        ({"png": b"damaged"}, "no caption"),
        ({"png": b"damaged", "json": b"{}"}, "no caption"),
        ({"png": b"damaged", "json": b'{"captions": []}'}, "no caption"),
        ({"png": png(), "json": b'{"captions": ["fine", " "]}'}, "no caption or an empty one"),
        ({"png": png(), "json": b'{"captions": "a red circle"}'}, "captions are 'a red circle'.*list of texts"),
        ({"png": png(), "json": b'{"captions": {"en": "a"}}'}, "captions are .*list of texts"),
        ({"png": png(), "json": b'{"captions": ["fine", null]}'}, "captions are .*None.*list of texts"),
        ({"png": png(), "json": b'{"captions": [3]}'}, "captions are .*3.*list of texts"),
        ({"png": png(), "json": b'{"caption": 3}'}, "captions are .*3.*'caption' one text"),
        ({"png": b"damaged", "json": b"{"}, "captions cannot be read"),
        ({"png": b"damaged", "json": b"[1]"}, "captions cannot be read"),
        ({"png": b"damaged", "txt": b"\xff\xfe"}, "captions cannot be read"),
    ],
)
def test_a_damaged_sample_is_named_by_its_key(tmp_path, sample, says):
    shards = written(tmp_path, {"png": png(), "txt": b"fine"}, sample)
    assert shards[0].captions == ["fine"]
    with pytest.raises(ValueError, match=f"sample 0001.*{says}"):
        shards[1]


def test_a_cache_holds_the_latents_and_belongs_to_its_vae(tmp_path, small_vae, monkeypatch):
    colors = ["red", "blue", "lime"]
    shards = written(tmp_path / "shards", *({"png": png(color), "txt": color.encode()} for color in colors))
    cache_latents(shards, small_vae, 32, tmp_path / "cache", batch_size=2)
    cache = load_cached(tmp_path / "cache", small_vae)
    assert cache["keys"] == ["0000", "0001", "0002"] and cache["captions"] == [["red"], ["blue"], ["lime"]]
    assert cache["pixels"].dtype == torch.uint8 and cache["pixels"][0, :, 0, 0].tolist() == [255, 0, 0]
    latents = encode(small_vae, cache["pixels"].float() / 127.5 - 1)
    torch.testing.assert_close(cache["latents"].float(), latents, atol=2e-3, rtol=2e-3)
    torch.manual_seed(5)
    with pytest.raises(ShardError, match="was made by VAE .* not by this one"):
        load_cached(tmp_path / "cache", tiny_vae())
    with pytest.raises(ShardError, match="no latent cache"):
        load_cached(tmp_path / "none")
    monkeypatch.setattr("encoder.data.preprocessing_hash", lambda image_size: f"another {image_size}")
    with pytest.raises(ShardError, match="another version of encoder/images.py; make it again"):
        load_cached(tmp_path / "cache", small_vae)


def test_captions_are_drawn_anew_every_epoch():
    captions = [f"caption {index}" for index in range(50)]
    cache = {"keys": ["a"], "captions": [captions], "latents": torch.zeros(1, 1), "pixels": torch.zeros(1, 1)}
    pairs, drawn = CachedPairs(cache, seed=0), []
    for epoch in range(5):
        pairs.set_epoch(epoch)
        assert pairs[0]["caption"] == pairs[0]["caption"]
        drawn.append(pairs[0]["caption"])
    assert len(set(drawn)) > 1 and set(drawn) <= set(captions)


def test_the_last_caption_is_drawn_as_often_as_asked():
    cache = {
        "keys": list(range(400)),
        "captions": [["bare", "full"]] * 400,
        "latents": torch.zeros(400, 1),
        "pixels": torch.zeros(400, 1),
    }
    for probability, expected in ((0.0, 200), (0.6, 320), (1.0, 400)):  # the last is also one of any
        pairs = CachedPairs(cache, seed=0, last_caption_probability=probability)
        full = sum(pairs[index]["caption"] == "full" for index in range(400))
        assert abs(full - expected) <= 4 * 10  # four standard deviations of 400 draws


def batches(sampler):
    order = list(sampler)
    assert len(order) == len(sampler)
    return [order[start : start + sampler.batch_size] for start in range(0, len(order), sampler.batch_size)]


@settings(max_examples=60, deadline=None)
@given(
    descriptions=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 5),
)
def test_no_batch_holds_a_description_twice(descriptions, batch_size, seed, epoch):
    if len(set(descriptions)) < batch_size:
        with pytest.raises(ValueError, match="different descriptions"):
            DistinctSampler(descriptions, batch_size, seed)
        return
    sampler = DistinctSampler(descriptions, batch_size, seed)
    sampler.set_epoch(epoch)
    first = batches(sampler)
    assert all(len({descriptions[index] for index in batch}) == batch_size for batch in first)
    again = DistinctSampler(descriptions, batch_size, seed)
    again.set_epoch(epoch)
    assert batches(again) == first


def test_epochs_differ_and_all_pictures_come_once_where_descriptions_are_distinct():
    sampler = DistinctSampler([str(index) for index in range(40)], 8, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(40))
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(40)) and list(sampler) != first
