"""Questions about scenes, with short answers and flat priors: no answer can be guessed from the wording alone."""

import zlib
from dataclasses import dataclass, replace

import numpy as np

from training.shapes.scene import COLORS, COUNT_MIX, HELD_OUT_PAIRS, SHAPES, Object, Scene, relation
from training.shapes.text import NUMBERS, caption_facts, captions, facts_hold, noun, with_article

KINDS = (
    "color",
    "shape",
    "size",
    "count",
    "where",
    "relation",
    "exists",
    "match_random",
    "match_absent",
    "match_swapped",
)
YES_NO_KINDS = KINDS[6:]


@dataclass(frozen=True)
class Question:
    """kind: one of KINDS. The match kinds ask about a whole caption, and differ in how their "no" captions are false:
    another scene's caption, one attribute that is not in the picture, two attributes that changed places."""

    text: str
    answer: str
    kind: str


def scene_rng(scene: Scene) -> np.random.Generator:
    """Random choices about a scene's text depend on the scene alone."""
    return np.random.default_rng(zlib.crc32(repr(scene).encode()))


def _pick(rng: np.random.Generator, items):
    return items[rng.integers(len(items))]


def _allowed(pairs: list[tuple[str, str]], scene: Scene) -> bool:
    """No text about a scene brings in a held-out pair that the scene does not show."""
    shown = {(o.color, o.shape) for o in scene.objects}
    return all(pair in shown or pair not in HELD_OUT_PAIRS for pair in pairs)


def _unique(scene: Scene, attribute: str) -> list[Object]:
    values = [getattr(o, attribute) for o in scene.objects]
    return [o for o in scene.objects if values.count(getattr(o, attribute)) == 1]


def _about_one_object(scene: Scene, rng: np.random.Generator) -> list[Question]:
    asked = []
    if objects := _unique(scene, "shape"):
        obj = _pick(rng, objects)
        asked.append(Question(f"what color is the {obj.shape}?", obj.color, "color"))
    if objects := _unique(scene, "color"):
        obj = _pick(rng, objects)
        asked.append(Question(f"what shape is the {obj.color} object?", obj.shape, "shape"))
    obj = _pick(rng, scene.objects)
    asked.append(Question(f"what size is the {noun(obj, size=False)}?", obj.size, "size"))
    obj = _pick(rng, scene.objects)
    asked.append(Question(f"where is the {noun(obj, size=False)}?", obj.place, "where"))
    return asked


def _exists(scene: Scene, rng: np.random.Generator) -> Question:
    if rng.random() < 0.5:
        obj = _pick(rng, scene.objects)
        return Question(f"is there {with_article(noun(obj, size=False))}?", "yes", "exists")
    shown = {(o.color, o.shape) for o in scene.objects}
    pairs = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in shown and (c, s) not in HELD_OUT_PAIRS]
    # Half of the "no" answers share an attribute with an object of the picture.
    near = [(c, s) for c, s in pairs if any(c == o.color or s == o.shape for o in scene.objects)]
    color, shape = _pick(rng, near if rng.random() < 0.5 else pairs)
    return Question(f"is there {with_article(f'{color} {shape}')}?", "no", "exists")


def _replaced(scene: Scene, index: int, changed: Object) -> Scene:
    objects = list(scene.objects)
    objects[index] = changed
    return replace(scene, objects=tuple(objects))


def swapped(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The scene with the colours of two objects exchanged, or None where that would change nothing or is held out."""
    if len(scene.objects) < 2:
        return None
    first, second = (int(i) for i in rng.choice(len(scene.objects), size=2, replace=False))
    a, b = scene.objects[first], scene.objects[second]
    if a.color == b.color or a.shape == b.shape:
        return None
    other = _replaced(_replaced(scene, first, replace(a, color=b.color)), second, replace(b, color=a.color))
    return other if _allowed([(b.color, a.shape), (a.color, b.shape)], scene) else None


def _with_absent_attribute(scene: Scene, rng: np.random.Generator) -> Scene | None:
    index = int(rng.integers(len(scene.objects)))
    obj = scene.objects[index]
    if rng.random() < 0.5:
        changed = replace(obj, color=_pick(rng, [c for c in COLORS if c not in {o.color for o in scene.objects}]))
    else:
        changed = replace(obj, shape=_pick(rng, [s for s in SHAPES if s not in {o.shape for o in scene.objects}]))
    return _replaced(scene, index, changed) if _allowed([(changed.color, changed.shape)], scene) else None


def _another_scene(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene with the same number of objects whose colours and shapes are drawn afresh."""
    pairs = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS]
    chosen = rng.choice(len(pairs), size=len(scene.objects), replace=False)
    objects = tuple(
        replace(o, color=pairs[i][0], shape=pairs[i][1]) for o, i in zip(scene.objects, chosen, strict=True)
    )
    return replace(scene, objects=objects)


def _match(scene: Scene, rng: np.random.Generator, kind: str) -> Question | None:
    maker = {"match_random": _another_scene, "match_absent": _with_absent_attribute, "match_swapped": swapped}[kind]
    other = maker(scene, rng)
    if other is None:
        return None
    wording = int(rng.integers(len(captions(scene))))
    if rng.random() < 0.5:
        return Question(f"does the picture show: {captions(scene)[wording]}?", "yes", kind)
    text = captions(other)[wording]
    if facts_hold(caption_facts(text), scene):
        return None
    return Question(f"does the picture show: {text}?", "no", kind)


def questions(scene: Scene) -> list[Question]:
    """The questions about a scene, at most one of each kind; the same scene gives the same list."""
    rng = scene_rng(scene)
    asked = _about_one_object(scene, rng)
    # The count is asked more often where it is rarer, so that each number is the answer equally often.
    count = len(scene.objects)
    if rng.random() < COUNT_MIX[-1] / COUNT_MIX[count - 1]:
        asked.append(Question("how many objects are there?", NUMBERS[count - 1], "count"))
    if count == 2 and (word := relation(*scene.objects)):
        first, second = (noun(o, size=False) for o in scene.objects)
        asked.append(Question(f"where is the {first} compared to the {second}?", word.removesuffix(" of"), "relation"))
    asked.append(_exists(scene, rng))
    asked += [q for kind in KINDS[7:] if (q := _match(scene, rng, kind))]
    return asked
