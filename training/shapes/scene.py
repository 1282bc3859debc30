"""Scenes of the `shapes` world: what is in a picture, drawn at random or written by hand.

Captioned factors: shape, colour, size, place, relation, count, background.
Uncaptioned factors: rotation, exact position, radius in pixels, hue offset, background gradient angle.
Coordinates run from 0 to 1, x to the right and y downwards; a radius is a fraction of the picture's side.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
# Colour name -> hue in degrees. Neighbours are at least 25 degrees apart, HUE_JITTER is far below half of that.
COLORS = {"red": 0, "orange": 28, "yellow": 55, "green": 120, "cyan": 180, "blue": 228, "purple": 275, "pink": 322}
HUE_JITTER = 5.0
# Size name -> range of radii. The gap between the two is what makes the word decidable.
SIZES = {"small": (0.14, 0.16), "large": (0.21, 0.24)}
# Degrees to either side. Smaller shapes at any angle were what an encoder with 4 x 4 tokens of 16 px learned last, far
# behind colour and place (docs/log.md, 2026-11-24).
ROTATION = 15.0
BACKGROUNDS = {"white": 0.92, "gray": 0.55, "black": 0.10}  # name -> mean grey level
PLACES = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
HELD_OUT_PAIRS = frozenset(zip(COLORS, SHAPES, strict=True))
COUNT_MIX = (0.50, 0.30, 0.15, 0.05)  # share of pictures with 1, 2, 3, 4 objects
GAP = 0.05  # least distance between the circles around two objects
PLACE_MARGIN = 0.025  # centres keep this distance from the lines between places, so that the word is decidable
RELATION_DISTANCE, RELATION_DOMINANCE = 0.2, 1.5  # how far apart, and how much more along one axis than the other

Split = Literal["train", "val", "test_iid", "test_combo"]


@dataclass(frozen=True)
class Object:
    """One object. rotation in degrees, hue_offset in degrees from the colour's own hue."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0
    hue_offset: float = 0.0

    @property
    def place(self) -> str:
        return place_of(self.x, self.y)


@dataclass(frozen=True)
class Scene:
    """objects in the order in which captions name them; background a key of BACKGROUNDS."""

    objects: tuple[Object, ...]
    background: str
    gradient_angle: float = 0.0
    gradient_strength: float = 0.05

    @property
    def label(self) -> int:
        """A class of 64, for drawing without text: 8 x colour + shape of the object that captions name first."""
        first = self.objects[0]
        return len(SHAPES) * list(COLORS).index(first.color) + SHAPES.index(first.shape)

    @property
    def description(self) -> str:
        """The canonical description: equal for two scenes that every caption describes equally well."""
        names = sorted(f"{o.size} {o.color} {o.shape} at the {o.place}" for o in self.objects)
        links = []
        if len(self.objects) == 2:
            first, second = sorted(self.objects, key=lambda o: (o.size, o.color, o.shape, o.place))
            links = [relation(first, second) or "beside"]
        return "; ".join([*names, *links, f"on {self.background}"])


def place_of(x: float, y: float) -> str:
    """The word for a point, from the 3x3 grid PLACES."""
    return PLACES[min(2, int(y * 3))][min(2, int(x * 3))]


def relation(first: Object, second: Object) -> str | None:
    """How `first` lies to `second`, one of RELATIONS, or None where no word is clearly right."""
    dx, dy = second.x - first.x, second.y - first.y
    if max(abs(dx), abs(dy)) < RELATION_DISTANCE:
        return None
    if abs(dx) > RELATION_DOMINANCE * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) > RELATION_DOMINANCE * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def _clear_place(value: float) -> bool:
    return min(abs(value - 1 / 3), abs(value - 2 / 3)) > PLACE_MARGIN


def _sample_position(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    # The place is drawn first so that all nine words are about equally frequent.
    row, column = rng.integers(3, size=2)
    low, high = radius + 0.01, 1 - radius - 0.01
    x_range = max(low, column / 3 + PLACE_MARGIN), min(high, (column + 1) / 3 - PLACE_MARGIN)
    y_range = max(low, row / 3 + PLACE_MARGIN), min(high, (row + 1) / 3 - PLACE_MARGIN)
    return float(rng.uniform(*x_range)), float(rng.uniform(*y_range))


def _sample_pairs(rng: np.random.Generator, count: int, split: Split) -> list[tuple[str, str]]:
    """`count` different (colour, shape) pairs; held-out ones only, and at least one, in test_combo."""
    colors, allowed = list(COLORS), []
    while len(allowed) < count:
        pair = colors[rng.integers(len(colors))], SHAPES[rng.integers(len(SHAPES))]
        if pair not in allowed and (split == "test_combo" or pair not in HELD_OUT_PAIRS):
            allowed.append(pair)
    if split == "test_combo" and not HELD_OUT_PAIRS.intersection(allowed):
        held_out = sorted(HELD_OUT_PAIRS)
        allowed[rng.integers(count)] = held_out[rng.integers(len(held_out))]
    return allowed


def sample_scene(
    rng: np.random.Generator, split: Split = "train", level: str | None = None, num_objects: int | None = None
) -> Scene:
    """Draws a scene. `level` is "plain" (also for None); raises ValueError for an unknown split, level or count."""
    if split not in ("train", "val", "test_iid", "test_combo"):
        raise ValueError(f"unknown split {split!r}; choose train, val, test_iid or test_combo")
    if level not in (None, "plain"):
        raise ValueError(f"unknown level {level!r}; this version draws level 'plain' only")
    if num_objects is not None and not 1 <= num_objects <= len(COUNT_MIX):
        raise ValueError(f"num_objects is {num_objects}; it must be between 1 and {len(COUNT_MIX)}")
    count = num_objects or int(rng.choice(len(COUNT_MIX), p=COUNT_MIX)) + 1
    while True:
        objects = _try_objects(rng, _sample_pairs(rng, count, split))
        if objects is not None:
            break
    return Scene(
        objects=objects,
        background=list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))],
        gradient_angle=float(rng.uniform(0, 360)),
        gradient_strength=float(rng.uniform(0.02, 0.07)),
    )


def _try_objects(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[Object, ...] | None:
    """Objects that keep their distance, or None if this draw does not fit; two objects always stand in a relation."""
    objects: list[Object] = []
    for color, shape in pairs:
        size = list(SIZES)[rng.integers(2)]
        radius = float(rng.uniform(*SIZES[size]))
        x, y = _sample_position(rng, radius)
        objects.append(
            Object(
                shape,
                color,
                size,
                x,
                y,
                radius,
                float(rng.uniform(-ROTATION, ROTATION)),
                float(rng.uniform(-HUE_JITTER, HUE_JITTER)),
            )
        )
    for one, other in combinations(objects, 2):
        if math.hypot(one.x - other.x, one.y - other.y) < one.radius + other.radius + GAP:
            return None
    if len(objects) == 2 and relation(*objects) is None:
        return None
    return tuple(objects)
