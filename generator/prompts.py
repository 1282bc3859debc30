"""Prompts of the `shapes` world by category, as GenEval asks its own: python -m generator.evaluate judges them."""

import numpy as np

from training.shapes import Scene, caption_facts, captions, sample_scene
from training.shapes.write import SPLITS

# Each with the number of its objects; counting has three or four. A prompt names what is drawn at random below.
CATEGORIES = ("single", "two_with_relation", "counting", "colors", "position", "binding")
OBJECTS = {"single": 1, "two_with_relation": 2, "colors": 1, "position": 1, "binding": 2}


def _fits(category: str, text: str) -> bool:
    facts = caption_facts(text)
    first = facts.objects[0]
    if category == "two_with_relation":
        return bool(facts.relations)
    if category == "counting":
        return " objects: " in text
    if category == "colors":
        return first.size is None and first.place is None and facts.background is None
    if category == "position":
        return first.place is not None
    if category == "binding":
        return not facts.relations and first.size is not None
    return True


def prompt_at(category: str, split: str, index: int, seed: int = 0) -> tuple[Scene, str]:
    """Scene and prompt number `index` of a category: a function of the arguments alone.

    single: one object in any wording; two_with_relation: two and how they lie; counting: "three objects: ..." or four;
    colors: one object, its colour and shape and nothing else; position: one object and its place; binding: two objects
    with size and colour each and no relation.
    """
    rng = np.random.default_rng((seed, 1 + CATEGORIES.index(category), SPLITS.index(split), index))
    while True:
        counting = 3 + int(rng.integers(2))  # drawn for every category: the prompts stay as they were measured
        scene = sample_scene(rng, split=split, num_objects=OBJECTS.get(category, counting))
        if texts := [text for text in captions(scene) if _fits(category, text)]:
            return scene, texts[rng.integers(len(texts))]
