"""Evaluation: prompts by category, verdicts, drawings that no batch changes, distances to real pictures, refusals."""

import importlib.util
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.images import to_pil
from encoder.metrics import frechet_distance
from generator import OpenVision3Pipeline
from generator.distribution import balanced_labels, decoded, draw_many, real_pictures
from generator.editing import reconstruct
from generator.evaluate import diversity, judge, main, parse
from generator.features import WORDS, accuracy, answers, extract, load_features, pictures_of, train
from generator.features import main as write_features
from generator.pipeline import make_scheduler
from generator.prompts import CATEGORIES, prompt_at
from training.shapes import Object, Scene, caption_facts, captions, facts_hold, render
from training.shapes.write import write

FAST = {"num_inference_steps": 1, "guidance_scale": 1.0}
ARGUMENTS = ["--steps", "1", "--guidance", "1", "--model", "m"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write(folder, "val", count=12, size=64)
    return str(folder / "val")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    write_features(["--out", str(path), "--pictures", "20", "--steps", "2"])
    return str(path)


@pytest.fixture()
def classes(autoencoder, make_transformer):
    """A pipeline that draws five classes."""
    pipe = OpenVision3Pipeline(make_transformer(num_classes=5), autoencoder, make_scheduler(1.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_category_asks_for_one_thing():
    wanted = {
        "single": lambda facts: len(facts.objects) == 1,
        "two_with_relation": lambda facts: len(facts.objects) == 2 and facts.relations,
        "counting": lambda facts: len(facts.objects) in (3, 4),
        "colors": lambda facts: len(facts.objects) == 1 and facts.objects[0].size is facts.objects[0].place is None,
        "position": lambda facts: len(facts.objects) == 1 and facts.objects[0].place,
        "binding": lambda facts: len(facts.objects) == 2 and not facts.relations and all(o.size for o in facts.objects),
    }
    assert set(wanted) == set(CATEGORIES)
    for category, asks in wanted.items():
        for index in range(8):
            scene, prompt = prompt_at(category, "test_iid", index)
            facts = caption_facts(prompt)
            assert asks(facts) and prompt in captions(scene) and facts_hold(facts, scene), prompt
            assert bool(facts.relations) == (category == "two_with_relation")
            assert prompt == prompt_at(category, "test_iid", index)[1]
    assert prompt_at("single", "val", 3)[1] == "a small pink ring"  # what reports of before were measured on


def test_verdicts_say_what_alone_is_right():
    circle = Object("circle", "red", "large", 0.25, 0.3, radius=0.22)
    square = Object("square", "blue", "small", 0.7, 0.7, radius=0.15)
    picture = render(Scene((circle, square), "white"), 64)
    right = {"right": True, "number": True, "colors": True, "shapes": True}
    assert judge(picture, "a red circle and a blue square") == right
    assert judge(picture, "a blue circle and a red square") == {**right, "right": False}
    assert judge(picture, "a red star and a blue square") == {**right, "right": False, "shapes": False}
    assert judge(picture, "a red circle") == dict.fromkeys(right, False)


def test_every_category_is_in_the_report(files, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("generator.evaluate.load_pipeline", lambda folder: pipeline)
    main([*ARGUMENTS, "--count", "3", "--batch", "2", "--out", str(tmp_path / "report.json"),
          "--nearest", str(files / "cache")])  # fmt: skip
    figures = json.loads((tmp_path / "report.json").read_text())["splits"]["test_iid"]
    for category in CATEGORIES:
        assert all(figures[category][name]["count"] == 3 for name in ("drawn", "ceiling", "nearest_caption"))
        assert (tmp_path / f"report_test_iid_{category}.png").is_file()
    assert 1 <= figures["diversity"]["distinct_layouts"]["real"] <= figures["diversity"]["seeds"] == 16


def test_diversity_counts_layouts():
    scenes = [prompt_at("colors", "val", index)[0] for index in range(2)]

    class Drawer:
        transformer, autoencoder = SimpleNamespace(grid=(4, 4)), SimpleNamespace(patch_size=16)

        def __call__(self, prompts, generator):
            assert len(set(prompts)) == 1 and len({each.initial_seed() for each in generator}) == len(prompts) == 16
            return SimpleNamespace(images=[render(scenes[index % 2], 64) for index in range(len(prompts))])

    found = diversity(Drawer(), "val", 2, 0)
    assert found["distinct_layouts"]["drawn"] == 2 and 8 <= found["distinct_layouts"]["real"] <= 16


def test_a_drawing_is_the_same_in_any_batch(pipeline, classes):
    for pipe, what in ((pipeline, {"prompt": ["a red circle", "a square", "small blue circle left of a square"]}),
                       (classes, {"class_labels": balanced_labels(3, 5)})):  # fmt: skip
        one, two, all_of_them = (draw_many(pipe, what, batch, 7, **FAST).astype(int) for batch in (1, 2, 3))
        assert one.shape == (3, 64, 64, 3) and np.ptp(one) > 0
        assert max(np.abs(one - two).max(), np.abs(one - all_of_them).max()) <= 1  # rounding of another matmul
    assert np.bincount(balanced_labels(23, 5)).tolist() == [5, 5, 5, 4, 4]


def test_the_report_holds_every_distance_and_the_npz_the_drawings(pipeline, shards, features, tmp_path, monkeypatch):
    monkeypatch.setattr("generator.evaluate.load_pipeline", lambda folder: pipeline)
    main([*ARGUMENTS, "--count", "8", "--batch", "3", "--categories", "--real", shards, "--features", features,
          "--npz", str(tmp_path / "new/drawings.npz"), "--out", str(tmp_path / "report.json")])  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["splits"] == {} and report["together"]["count"] == 8
    drawn = np.load(tmp_path / "new/drawings.npz")["arr_0"]
    assert drawn.shape == (8, 64, 64, 3) and drawn.dtype == np.uint8
    real, texts = real_pictures(shards, 8, 64, 0)
    assert np.abs(draw_many(pipeline, {"prompt": texts}, 8, 0, **FAST).astype(int) - drawn).max() <= 1
    found, expected = report["together"]["drawn"], [extract(load_features(features), each) for each in (drawn, real)]
    assert found["frechet_distance"] == pytest.approx(frechet_distance(*expected), rel=1e-4)
    assert set(found) == {"frechet_distance", "kernel_distance", "precision", "recall"}
    assert set(found) == set(report["together"]["ceiling"])
    pixels = torch.from_numpy(real).permute(0, 3, 1, 2).float() / 127.5 - 1
    again = np.stack([np.asarray(each) for each in reconstruct(pipeline, pixels)])
    assert np.abs(decoded(pipeline, real, 3).astype(int) - again).max() <= 1


def test_a_generator_of_classes_draws_each_equally_often(classes, tmp_path, monkeypatch):
    seen = []

    def draw(pipe, what, *given, **options):
        seen.append(what)
        return draw_many(pipe, what, *given, **options)

    monkeypatch.setattr("generator.evaluate.load_pipeline", lambda folder: classes)
    monkeypatch.setattr("generator.evaluate.draw_many", draw)
    main([*ARGUMENTS, "--count", "7", "--npz", str(tmp_path / "a.npz"), "--out", str(tmp_path / "r.json")])
    assert seen == [{"class_labels": [0, 1, 2, 3, 4, 0, 1]}] and len(np.load(tmp_path / "a.npz")["arr_0"]) == 7


def test_pictures_that_have_a_class_and_no_caption(pipeline, classes, features, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for index in range(4):
            Image.new("RGB", (64, 64), (60 * index, 0, 90)).save(tmp_path / "picture.png")
            (tmp_path / "class").write_text(str(index))
            tar.add(tmp_path / "picture.png", f"{index}.png")
            tar.add(tmp_path / "class", f"{index}.cls")
    options = [*ARGUMENTS, "--categories", "--count", "4", "--real", str(tmp_path), "--features", features]
    monkeypatch.setattr("generator.evaluate.load_pipeline", lambda folder: classes)
    main([*options, "--out", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["together"]["drawn"]["frechet_distance"] > 0
    monkeypatch.setattr("generator.evaluate.load_pipeline", lambda folder: pipeline)
    with pytest.raises(ValueError, match="holds pictures without a caption, from which this generator draws"):
        main([*options, "--out", str(tmp_path / "r.json")])


def test_refusals(pipeline, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("generator.evaluate.load_pipeline", lambda folder: pipeline)
    out = ["--out", str(tmp_path / "r.json"), "--categories"]
    with pytest.raises(ValueError, match="--features needs --real"):
        parse([*ARGUMENTS, *out, "--features", "x"])
    with pytest.raises(ValueError, match="--real needs --features, .* or --npz"):
        parse([*ARGUMENTS, *out, "--real", shards])
    with pytest.raises(ValueError, match="nothing to measure without prompts"):
        main([*ARGUMENTS, *out])
    monkeypatch.setattr("generator.evaluate.evaluate_category", lambda *given, **options: pytest.fail("not refused"))
    npz = ["--npz", str(tmp_path / "a.npz"), *out[:2]]  # with every category
    with pytest.raises(ValueError, match="name the shards of its captions with --real"):
        main([*ARGUMENTS, *npz])
    with pytest.raises(ValueError, match="holds 12 pictures and 13 are asked for: lower --count"):
        main([*ARGUMENTS, *npz, "--real", shards, "--count", "13"])
    with pytest.raises(ValueError, match="python -m generator.features"):
        load_features(tmp_path / "none.safetensors")
    if importlib.util.find_spec("torch_fidelity") is None:
        with pytest.raises(ValueError, match="pip install 'openvision3\\[fidelity\\]'"):
            load_features("inception")


def test_the_classifier_learns_from_pixels_and_reads_any_size(monkeypatch):
    circle, star = Object("circle", "red", "large", 0.3, 0.3, 0.22), Object("star", "red", "small", 0.7, 0.7, 0.15)
    said = answers(Scene((circle, star), "gray"))
    assert {word for word, yes in zip(WORDS, said, strict=True) if yes} == {"red", "circle", "star", "gray", 2}
    pictures, targets = pictures_of("train", 16)
    monkeypatch.setattr("generator.features.TRAIN_BATCH", 16)
    fitted = train(pictures, targets, steps=80)
    right, whole = accuracy(fitted, pictures, targets)
    constant = (targets == (targets.mean(dim=0) > 0.5)).double().mean()  # the best answer without looking
    assert right > constant + 0.05 and whole <= right
    assert accuracy(fitted, pictures, (fitted(pictures) > 0).float()) == (1, 1)
    large = [to_pil(torch.rand(1, 3, 96, 96))[0], Image.new("RGB", (96, 96))]
    assert extract(fitted.features, np.stack([np.asarray(each) for each in large])).shape == (2, 64)
