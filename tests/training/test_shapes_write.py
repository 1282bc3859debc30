"""The written data set: same bytes for a seed, nothing held out in it, texts that hold, flat answers."""

import json
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from training.shapes import COLORS, HELD_OUT_PAIRS, SHAPES, caption_facts, captions, facts_hold, questions
from training.shapes.write import scene_at, scene_from_dict, write
from training.shards import read_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    for split in ("train", "test_combo"):
        write(root, split, count=300, size=32, seed=3, question_images=40, corpus=300)
    return root


def test_the_same_seed_writes_the_same_bytes(folder, tmp_path):
    write(tmp_path, "train", count=300, size=32, seed=3, question_images=40, corpus=300)
    for file in sorted(path for path in (folder / "train").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / file.relative_to(folder)).read_bytes(), file.name


def _samples(folder, split):
    return [sample for path in sorted((folder / split / "shards").iterdir()) for _, sample in read_tar(path)]


def _text_of(folder, split):
    texts = [sample["json"].decode() for sample in _samples(folder, split)]
    texts += [(folder / split / name).read_text() for name in ("questions.json", "corpus.txt")]
    return "\n".join(texts)


def test_no_held_out_pair_in_any_training_text(folder):
    train, combo = _text_of(folder, "train"), _text_of(folder, "test_combo")
    for color, shape in HELD_OUT_PAIRS:
        assert f"{color} {shape}" not in train
    assert sum(f"{color} {shape}" in combo for color, shape in HELD_OUT_PAIRS) == len(HELD_OUT_PAIRS)


def test_every_scene_of_test_combo_holds_a_held_out_pair():
    for index in range(50):
        pairs = {(obj.color, obj.shape) for obj in scene_at("test_combo", index).objects}
        assert pairs & HELD_OUT_PAIRS
        assert not {(obj.color, obj.shape) for obj in scene_at("train", index).objects} & HELD_OUT_PAIRS


def test_captions_parse_back_and_hold(folder):
    for sample in _samples(folder, "train"):
        values = json.loads(sample["json"])
        scene = scene_from_dict(values["scene"])
        assert values["captions"] == captions(scene)
        color, shape = divmod(values["label"], len(SHAPES))
        assert (list(COLORS)[color], SHAPES[shape]) == (scene.objects[0].color, scene.objects[0].shape)
        for text in values["captions"]:
            assert facts_hold(caption_facts(text), scene), text


def test_a_caption_of_another_scene_does_not_hold():
    scenes = [scene_at("train", index) for index in range(60)]
    wrong = [
        facts_hold(caption_facts(captions(first)[0]), second)
        for first, second in pairwise(scenes)
        if first.description != second.description
    ]
    assert sum(wrong) <= 0.1 * len(wrong)


def test_each_yes_no_wording_has_flat_answers():
    answers = defaultdict(Counter)
    for index in range(1500):
        for question in questions(scene_at("train", index)):
            if question.answer in ("yes", "no"):
                answers[question.kind.split("_")[0]][question.answer] += 1
    assert answers
    for kind, counts in answers.items():
        assert abs(counts["yes"] / counts.total() - 0.5) < 0.06, (kind, counts)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError):
        scene_at("holdout", 0)
