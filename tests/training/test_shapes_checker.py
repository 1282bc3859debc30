"""The judge: it accepts what is right, rejects what is not, and reads nothing but the picture."""

import numpy as np
import pytest

from training.shapes import ShapesChecker, caption_facts, captions, render, sample_scene
from training.shapes.calibrate import ACCEPT, calibrate
from training.shapes.write import scene_at


@pytest.mark.parametrize("size", [64, 128])
def test_calibration_rates(size):
    # 40 scenes can miss one by chance; the table with N in the hundreds is `python -m training.shapes.calibrate`.
    for name, rate, _, count in calibrate(40, size):
        assert rate >= (0.90 if "JPEG" in name else 0.95), (name, rate, count)


def test_the_names_of_the_distortions_cover_the_house_rules():
    assert set(ACCEPT) == {"clean", "1 px blur", "JPEG 60", "noise +-8/255"}


def test_drawings_are_judged_by_the_prompt_alone():
    checker = ShapesChecker()
    right = wrong = 0
    for index in range(40):
        scene, other = scene_at("val", index), scene_at("val", index + 1000)
        picture = np.asarray(render(scene, 64))
        right += checker.check_facts(picture, caption_facts(captions(scene)[0]))
        if scene.description != other.description:
            wrong += checker.check_facts(picture, caption_facts(captions(other)[0]))
    assert right >= 38 and wrong <= 2


@pytest.mark.parametrize("picture", [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)])
def test_blank_pictures_hold_nothing(picture):
    assert ShapesChecker().read(picture) == []
    assert not ShapesChecker().check(picture, sample_scene(np.random.default_rng(0))).all_right
    assert not ShapesChecker().is_scene(picture)


def test_a_scene_holds_nothing_half_drawn():
    checker, scenes = ShapesChecker(), [scene_at("val", index) for index in range(40)]
    pictures = [np.asarray(render(scene, 64)) for scene in scenes]
    assert sum(map(checker.is_scene, pictures)) >= 39
    doubles = [(one // 2 + other // 2) for one, other in zip(pictures[::2], pictures[1::2], strict=True)]
    assert sum(map(checker.is_scene, doubles)) <= 1
    single = next(picture for picture, scene in zip(pictures, scenes, strict=True) if len(scene.objects) == 1)
    single = single.copy()
    single[:6, :30] = (0, 200, 255)  # a bar is no shape
    assert checker.read(single) and not checker.is_scene(single)
