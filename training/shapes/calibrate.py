"""Measures ShapesChecker against pictures whose truth is known: python -m training.shapes.calibrate [--count 500]"""

import argparse
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from training.shapes.checker import ShapesChecker
from training.shapes.questions import swapped
from training.shapes.render import render
from training.shapes.scene import COLORS, SHAPES, SIZES, Scene, sample_scene
from training.shapes.text import caption_facts, full_caption

Distort = Callable[[Image.Image, np.random.Generator], Image.Image]


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.int16)
    return Image.fromarray((pixels + rng.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8))


ACCEPT: dict[str, Distort] = {
    "clean": lambda image, rng: image,
    "1 px blur": lambda image, rng: image.filter(ImageFilter.GaussianBlur(1)),
    "JPEG 60": _jpeg,
    "noise +-8/255": _noise,
}


def _other(values, current, rng: np.random.Generator) -> str:
    choices = [value for value in values if value != current]
    return choices[rng.integers(len(choices))]


def _changed(scene: Scene, rng: np.random.Generator, attribute: str) -> Scene:
    obj = scene.objects[0]
    if attribute == "color":
        changed = replace(obj, color=_other(COLORS, obj.color, rng))
    elif attribute == "shape":
        changed = replace(obj, shape=_other(SHAPES, obj.shape, rng))
    elif attribute == "size":
        large = obj.size == "small"
        name = "large" if large else "small"
        changed = replace(obj, size=name, radius=sum(SIZES[name]) / 2)
    else:
        # 0.2 away, towards the picture's centre
        away = np.array([0.5 - obj.x, 0.5 - obj.y])
        step = 0.2 * away / max(1e-6, np.linalg.norm(away))
        changed = replace(obj, x=obj.x + float(step[0]), y=obj.y + float(step[1]))
    return replace(scene, objects=(changed, *scene.objects[1:]))


def _added(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """One more object where it fits, or None."""
    for _ in range(200):
        extra = sample_scene(rng, num_objects=1).objects[0]
        if all(np.hypot(extra.x - o.x, extra.y - o.y) > extra.radius + o.radius + 0.05 for o in scene.objects):
            return replace(scene, objects=(*scene.objects, extra))
    return None


def wrong_picture(name: str, scene: Scene, size: int, rng: np.random.Generator) -> Image.Image | None:
    """A picture that `scene` does not describe, or None where this kind of error is not possible."""
    if name in ("color", "shape", "size", "moved"):
        return render(_changed(scene, rng, name), size)
    if name == "swapped":
        other = swapped(scene, rng)
        return other and render(other, size)
    if name == "added":
        other = _added(scene, rng)
        return other and render(other, size)
    if name == "missing":
        return render(replace(scene, objects=scene.objects[1:]), size)
    if name == "average of two":
        return Image.blend(render(scene, size), render(sample_scene(rng), size), 0.5)
    if name == "blank":
        return render(replace(scene, objects=()), size)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


REJECT = ("color", "shape", "size", "moved", "swapped", "added", "missing", "average of two", "blank", "noise")


def calibrate(count: int, size: int, seed: int = 0) -> list[tuple[str, float, float, int]]:
    """-> rows (kind of picture, share judged rightly by check, the same by check_facts or NaN, N)."""
    checker, rng = ShapesChecker(), np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    rows = []
    for name, distort in ACCEPT.items():
        pictures = [np.asarray(distort(render(scene, size), rng)) for scene in scenes]
        checked = [checker.check(p, s).all_right for p, s in zip(pictures, scenes, strict=True)]
        facts = [checker.check_facts(p, caption_facts(full_caption(s))) for p, s in zip(pictures, scenes, strict=True)]
        rows.append((f"accepts: {name}", float(np.mean(checked)), float(np.mean(facts)), count))
    for name in REJECT:
        pairs = [(p, s) for s in scenes if (p := wrong_picture(name, s, size, rng)) is not None]
        rejected = [not checker.check(np.asarray(p), s).all_right for p, s in pairs]
        rows.append((f"rejects: {name}", float(np.mean(rejected)), float("nan"), len(pairs)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="scenes per row")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="pictures' sides in pixels")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        print(f"\n{size} px{'':24} check  facts      N")
        for name, checked, facts, number in calibrate(arguments.count, size):
            shown = "" if np.isnan(facts) else f"{facts:.1%}"
            print(f"{name:28} {checked:6.1%} {shown:>6} {number:6d}")


if __name__ == "__main__":
    main()
