"""What counts as right in a caption."""

import pytest

from encoder.evaluate import caption_is_right, caption_shares, objects_right
from training.shapes import Object, Scene

SCENE = Scene(
    (Object("circle", "red", "small", 0.2, 0.5, 0.15), Object("star", "blue", "large", 0.8, 0.5, 0.22)), "white"
)


@pytest.mark.parametrize(
    ("text", "right", "of"),
    [
        ("a small red circle left of a large blue star", 2, 2),
        ("a small red circle right of a large blue star", 2, 2),  # the relation is no object
        ("a large red circle and a blue star", 1, 2),
        ("a red circle", 1, 2),
        ("a red circle and a red circle", 1, 2),  # each object counts once
        ("a red circle, a blue star and a green heart", 2, 3),  # made up
        ("a red square and a blue circle", 0, 2),
        ("a red red", 0, 2),
    ],
)
def test_objects_named_rightly(text, right, of):
    assert objects_right(text, SCENE) == (right, of)


def test_captions_and_objects_are_counted_apart():
    texts = ["a small red circle left of a large blue star", "a red circle and a red star"]
    assert caption_is_right(texts[0], SCENE) and not caption_is_right(texts[1], SCENE)
    whole, objects = caption_shares(texts, [SCENE, SCENE])
    assert (whole["value"], whole["count"]) == (0.5, 2) and (objects["value"], objects["count"]) == (0.75, 4)
