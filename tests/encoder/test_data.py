"""Image-text pairs: damage is named and skipped where asked, captions are drawn, batches hold no description twice."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from encoder.data import CachedPairs, DistinctSampler, ImageTextStream
from training.shards import write_shards


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "PNG")
    return file.getvalue()


def written(folder, *samples):
    write_shards(folder, [{"__key__": f"{index:04d}", **sample} for index, sample in enumerate(samples)])
    return ImageTextStream(folder)


def test_texts_come_from_json_txt_or_cls(tmp_path):
    stream = written(
        tmp_path,
        {"png": png(), "json": json.dumps({"captions": ["a", "b"], "description": "d"}).encode()},
        {"png": png(), "json": b'{"caption": "one", "label": 7}'},
        {"png": png(), "txt": b" words \n"},
        {"png": png(), "txt": b"beside", "json": b'{"width": 32}'},
        {"png": png(), "cls": b"12"},
        {"png": png(), "json": b'{"captions": "a red circle"}'},
    )
    assert [(row.captions, row.description, row.label) for row in stream.pairs()] == [
        (["a", "b"], "d", None),
        (["one"], "one", 7),
        (["words"], "words", None),
        (["beside"], "beside", None),
        ([], "class 12", 12),
        (["a red circle"], "a red circle", None),
    ]


@pytest.mark.parametrize(
    "sample, says",
    [
        ({"txt": b"words"}, "no picture"),
        ({"png": b"damaged", "txt": b"words"}, "cannot be read as a picture"),
        ({"png": b"damaged"}, "no caption"),
        ({"png": b"damaged", "json": b"{}"}, "no caption"),
        ({"png": b"damaged", "json": b'{"captions": []}'}, "no caption"),
        ({"png": png(), "json": b'{"captions": ["fine", " "]}'}, "no caption or an empty one"),
        ({"png": png(), "json": b'{"captions": {"en": "a"}}'}, "captions are .*each must be a text"),
        ({"png": png(), "json": b'{"captions": ["fine", null]}'}, "captions are .*None.*each must be a text"),
        ({"png": png(), "json": b'{"captions": [3]}'}, "captions are .*3.*each must be a text"),
        ({"png": png(), "json": b'{"caption": 3}'}, "captions are .*3.*each must be a text"),
        ({"png": b"damaged", "json": b"{"}, "captions or label cannot be read"),
        ({"png": b"damaged", "json": b"[1]"}, "captions or label cannot be read"),
        ({"png": b"damaged", "txt": b"\xff\xfe"}, "captions or label cannot be read"),
        ({"png": png(), "cls": b"9" * 30}, "captions or label cannot be read"),
        ({"png": png(), "cls": b"cat"}, "captions or label cannot be read"),
    ],
)
def test_a_damaged_sample_is_named_by_its_key(tmp_path, sample, says):
    fine = {"png": png(), "txt": b"fine"}
    pairs = written(tmp_path, fine, sample, fine).pairs()
    assert next(pairs).captions == ["fine"]
    with pytest.raises(ValueError, match=f"sample 0001.*{says}"):
        next(pairs)
    stream = ImageTextStream(tmp_path, on_error="skip")
    assert [pair.key for pair in stream.pairs()] == ["0000", "0002"]
    assert stream.skipped == {"pictures" if "picture" in says else "captions": 1}


def fake_cache(captions):
    """What CachedPairs needs of a LatentCache, without pictures."""
    rows = torch.zeros(len(captions), 1)
    return SimpleNamespace(latents=rows, pixels=rows, captions=captions, keys=list(range(len(captions))))


def test_captions_are_drawn_anew_every_epoch():
    captions = [f"caption {index}" for index in range(50)]
    pairs, drawn = CachedPairs(fake_cache([captions]), seed=0), []
    for epoch in range(5):
        pairs.set_epoch(epoch)
        assert pairs[0]["caption"] == pairs[0]["caption"]
        drawn.append(pairs[0]["caption"])
    assert len(set(drawn)) > 1 and set(drawn) <= set(captions)


def test_the_last_caption_is_drawn_as_often_as_asked():
    cache = fake_cache([["bare", "full"]] * 400)
    for probability, expected in ((0.0, 200), (0.6, 320), (1.0, 400)):  # the last is also one of any
        pairs = CachedPairs(cache, seed=0, last_caption_probability=probability)
        full = sum(pairs[index]["caption"] == "full" for index in range(400))
        assert abs(full - expected) <= 4 * 10  # four standard deviations of 400 draws


def test_a_picture_without_caption_cannot_be_drawn_with_one():
    with pytest.raises(ValueError, match="has a class but no caption"):
        CachedPairs(fake_cache([[]]), seed=0)[0]


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
