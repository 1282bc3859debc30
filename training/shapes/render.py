"""Scene -> picture, by supersampled polygons: the same scene and size give the same bytes."""

import colorsys
import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from training.shapes.scene import BACKGROUNDS, COLORS, Object, Scene

SATURATION, VALUE = 0.85, 0.90
SUPERSAMPLING = 4


def _circle(radius: float, points: int = 48, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _crescent() -> np.ndarray:
    """The unit disc without a disc of radius 0.8 whose centre lies 0.55 to the right."""
    inner_radius, shift = 0.80, 0.55
    cross_x = (1 - inner_radius**2 + shift**2) / (2 * shift)
    outer_angle = math.acos(cross_x)
    inner_angle = math.acos((cross_x - shift) / inner_radius)
    outer = np.linspace(outer_angle, 2 * np.pi - outer_angle, 40)
    inner = np.linspace(2 * np.pi - inner_angle, inner_angle, 30)
    return np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], axis=1),
            np.stack([shift + inner_radius * np.cos(inner), inner_radius * np.sin(inner)], axis=1),
        ]
    )


def _area_centroid(polygon: np.ndarray) -> np.ndarray:
    following = np.roll(polygon, -1, axis=0)
    cross = polygon[:, 0] * following[:, 1] - following[:, 0] * polygon[:, 1]
    return ((polygon + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())


@cache
def outlines(shape: str) -> tuple[np.ndarray, ...]:
    """Polygons [points, 2] of a shape around its centroid, farthest point at distance 1; a second one is a hole."""
    if shape == "circle":
        polygon = _circle(1.0)
    elif shape == "ring":
        return _circle(1.0), _circle(0.52)
    elif shape == "square":
        polygon = _circle(1.0, 4)
    elif shape == "triangle":
        polygon = _circle(1.0, 3)
    elif shape == "star":
        polygon = _circle(1.0, 10) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]
    elif shape == "cross":
        arm = 0.34
        corners = [(1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm), (-1, arm)]
        polygon = np.array(corners + [(-x, -y) for x, y in corners])
    elif shape == "heart":
        polygon = _heart()
    elif shape == "crescent":
        polygon = _crescent()
    else:
        raise ValueError(f"unknown shape {shape!r}")
    polygon = polygon - _area_centroid(polygon)
    return (polygon / np.linalg.norm(polygon, axis=1).max(),)


def coverage(obj: Object, size: int) -> tuple[np.ndarray, slice, slice]:
    """How much of each pixel the object covers, [height, width] in [0, 1], with the rows and columns it stands for."""
    reach = obj.radius * size + 1
    left, top = max(0, int(obj.x * size - reach)), max(0, int(obj.y * size - reach))
    right, bottom = min(size, math.ceil(obj.x * size + reach)), min(size, math.ceil(obj.y * size + reach))
    mask = Image.new("L", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    angle = math.radians(obj.rotation)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    center = np.array([obj.x * size - left, obj.y * size - top])
    for polygon, ink in zip(outlines(obj.shape), (255, 0), strict=False):
        points = (polygon @ turn * obj.radius * size + center) * SUPERSAMPLING - 0.5
        pen.polygon([(float(x), float(y)) for x, y in points], fill=ink)
    alpha = np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    return alpha, slice(top, bottom), slice(left, right)


def foreground(scene: Scene, size: int) -> np.ndarray:
    """Where objects are: bool [size, size], true where at least half of the pixel is covered."""
    mask = np.zeros((size, size), dtype=bool)
    for obj in scene.objects:
        alpha, rows, columns = coverage(obj, size)
        mask[rows, columns] |= alpha >= 0.5
    return mask


def object_rgb(obj: Object) -> np.ndarray:
    """The object's colour, [3] in [0, 1]."""
    hue = (COLORS[obj.color] + obj.hue_offset) % 360 / 360
    return np.array(colorsys.hsv_to_rgb(hue, SATURATION, VALUE), dtype=np.float32)


def render(scene: Scene, size: int) -> Image.Image:
    """Draws the scene on size x size pixels, RGB."""
    angle = math.radians(scene.gradient_angle)
    steps = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    ramp = steps[None, :] * np.float32(math.cos(angle)) + steps[:, None] * np.float32(math.sin(angle))
    grey = BACKGROUNDS[scene.background] + scene.gradient_strength * ramp
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    for obj in scene.objects:
        alpha, rows, columns = coverage(obj, size)
        pixels[rows, columns] += alpha[:, :, None] * (object_rgb(obj) - pixels[rows, columns])
    return Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))
