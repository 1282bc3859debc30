"""ShapesChecker: an analytic judge of pictures. It sees RGB values only and has no learned parts.

Objects are saturated, backgrounds are not: chroma finds the objects, hue names their colour, and the part's outline in
polar coordinates, compared with each shape at every rotation, names the shape and, through its area, the size.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from training.shapes.render import SATURATION, VALUE, coverage
from training.shapes.scene import COLORS, COUNT_MIX, PLACES, SHAPES, SIZES, Object, Scene, relation
from training.shapes.text import CaptionFacts

WORKING_SIZE = 128  # pictures are read at this resolution, whatever theirs is
FULL_CHROMA = SATURATION * VALUE
FOREGROUND_CHROMA = 0.4 * FULL_CHROMA  # a pixel with at least this chroma is mostly object
LEAST_CORE_CHROMA = 0.62 * FULL_CHROMA  # with less the part is a ghost, as in the average of two pictures
CORE_SHARE = 0.25  # the most saturated quarter of a part is taken as its core, free of the mixed pixels at its edge
HUE_TOLERANCE = 14.0  # degrees; colours are at least 27 apart
LEAST_AREA = 0.003  # of the picture; the smallest object (a small crescent) has 0.010
LEAST_MATCH = 0.74  # overlap (intersection over union) with the best shape, in polar coordinates
SIZE_BORDER = (SIZES["small"][1] + SIZES["large"][0]) / 2
RADIUS_RANGE = (0.8 * SIZES["small"][0], 1.2 * SIZES["large"][1])
POSITION_TOLERANCE = 0.15
PLACE_TOLERANCE = 0.06  # a named place is right up to this far outside its cell
ANGLES, RADII = 90, 20
BLURS = (0.0, 0.15, 0.3)  # shapes are compared sharp and blurred, sigma in units of their radius
_CELL_AREAS = (np.arange(RADII) + 0.5)[:, None]  # a polar cell's area grows with its radius


@dataclass(frozen=True)
class Found:
    """One object as seen. x, y, radius as in Object; `match` is the overlap with the shape's outline."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    match: float


@dataclass(frozen=True)
class ObjectCheck:
    present: bool
    shape: bool
    color: bool
    size: bool
    position: bool

    @property
    def all_right(self) -> bool:
        return self.present and self.shape and self.color and self.size and self.position


@dataclass(frozen=True)
class Check:
    """objects: one verdict per object of the scene; extra: how many objects the scene does not have."""

    objects: tuple[ObjectCheck, ...]
    extra: int

    @property
    def all_right(self) -> bool:
        return self.extra == 0 and all(verdict.all_right for verdict in self.objects)


def _polar(mask: np.ndarray, y: float, x: float, unit: float) -> np.ndarray:
    """mask [height, width] around (y, x) in polar coordinates, radius up to 1.9 * unit: [RADII, ANGLES]."""
    radii = (np.arange(RADII) + 0.5) / RADII * 1.9 * unit
    angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
    rows = y + radii[:, None] * np.sin(angles)
    columns = x + radii[:, None] * np.cos(angles)
    return ndimage.map_coordinates(mask, [rows, columns], order=1, mode="constant")


def _moments(mask: np.ndarray) -> tuple[float, float, float]:
    """Area in pixels and centre of mass (y, x)."""
    area = float(mask.sum())
    y, x = ndimage.center_of_mass(mask)
    return area, y, x


@cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every shape's polar outline at every blur: spectra along the angle [blurs * shapes, RADII, ANGLES // 2 + 1],
    their energies [blurs * shapes], and each shape's area / radius^2 [shapes]."""
    side, radius = 192, 0.3
    outlines, unit_areas = [], []
    for shape in SHAPES:
        alpha, rows, columns = coverage(Object(shape, "red", "large", 0.5, 0.5, radius=radius), side)
        mask = np.zeros((side, side), dtype=np.float32)
        mask[rows, columns] = alpha
        area, y, x = _moments(mask)
        unit_areas.append(area / (radius * side) ** 2)
        for blur in BLURS:
            blurred = ndimage.gaussian_filter(mask, blur * radius * side)
            outlines.append(_polar(blurred, y, x, np.sqrt(area / np.pi)))
    polar = np.stack(outlines)
    return np.fft.rfft(polar, axis=2), (_CELL_AREAS * polar**2).sum(axis=(1, 2)), np.array(unit_areas)


def _match_shape(mask: np.ndarray) -> tuple[str, float, float, float, float]:
    """mask [height, width] in [0, 1] -> (shape, overlap, radius in pixels, y, x)."""
    area, y, x = _moments(mask)
    polar = _polar(mask, y, x, np.sqrt(area / np.pi))
    spectra, energies, unit_areas = _templates()
    cross = np.fft.rfft(polar * _CELL_AREAS, axis=1)[None] * spectra.conj()
    common = np.fft.irfft(cross.sum(axis=1), n=ANGLES, axis=1).max(axis=1)
    overlap = common / ((_CELL_AREAS * polar**2).sum() + energies - common)
    best = int(overlap.argmax())
    shape = best // len(BLURS)
    return SHAPES[shape], float(overlap[best]), float(np.sqrt(area / unit_areas[shape])), y, x


def _hue_distance(hue: np.ndarray, other: float) -> np.ndarray:
    return np.abs((hue - other + 180) % 360 - 180)


class ShapesChecker:
    """read() finds objects; check() compares them with a scene, check_facts() with what a caption says."""

    def read(self, image: np.ndarray) -> list[Found]:
        """image: [height, width, 3] uint8 -> the objects in it, largest first."""
        return sorted(filter(None, self._read_parts(image)), key=lambda item: -item.radius)

    def is_scene(self, image: np.ndarray) -> bool:
        """Whether image [height, width, 3] uint8 shows clean objects and nothing half drawn: at least one, at most
        four, and no coloured part that is none."""
        parts = self._read_parts(image)
        return 1 <= len(parts) <= len(COUNT_MIX) and None not in parts

    def _read_parts(self, image: np.ndarray) -> list[Found | None]:
        """Every coloured part large enough to be an object; None for one that is not."""
        rgb, hue, chroma = self._channels(image)
        foreground = chroma > FOREGROUND_CHROMA
        parts, count = ndimage.label(foreground)
        found = []
        for part in range(1, count + 1):
            for mask in self._split_by_hue(parts == part, hue):
                if mask.sum() >= LEAST_AREA * mask.size:
                    found.append(self._read_part(mask, foreground & ~mask, rgb, hue, chroma))
        return found

    def check(self, image: np.ndarray, scene: Scene) -> Check:
        """Judges a reconstruction of the scene: the same objects at the same positions."""
        found = self.read(image)
        pairs = self._assign(found, scene.objects)
        verdicts = []
        for index, obj in enumerate(scene.objects):
            seen = pairs.get(index)
            if seen is None:
                verdicts.append(ObjectCheck(False, False, False, False, False))
                continue
            near = np.hypot(seen.x - obj.x, seen.y - obj.y) <= POSITION_TOLERANCE
            verdicts.append(
                ObjectCheck(True, seen.shape == obj.shape, seen.color == obj.color, seen.size == obj.size, bool(near))
            )
        return Check(tuple(verdicts), extra=max(0, len(found) - len(scene.objects)))

    def check_facts(self, image: np.ndarray, facts: CaptionFacts) -> bool:
        """Judges a drawing by what the caption says and nothing else: every named object, its named attributes and
        relations, and no object beside these."""
        found = self.read(image)
        if len(found) != len(facts.objects):
            return False
        return self._facts_fit(found, facts, chosen=[])

    def _facts_fit(self, found: list[Found], facts: CaptionFacts, chosen: list[int]) -> bool:
        if len(chosen) == len(facts.objects):
            return all(relation(found[chosen[a]], found[chosen[b]]) == word for a, word, b in facts.relations)
        wanted = facts.objects[len(chosen)]
        return any(
            self._facts_fit(found, facts, [*chosen, index])
            for index, seen in enumerate(found)
            if index not in chosen
            and (seen.color, seen.shape) == (wanted.color, wanted.shape)
            and wanted.size in (None, seen.size)
            and (wanted.place is None or self._in_place(seen, wanted.place))
        )

    @staticmethod
    def _in_place(seen: Found, place: str) -> bool:
        row, column = next((r, c) for r, words in enumerate(PLACES) for c, word in enumerate(words) if word == place)
        return all(
            cell / 3 - PLACE_TOLERANCE <= value <= (cell + 1) / 3 + PLACE_TOLERANCE
            for cell, value in ((column, seen.x), (row, seen.y))
        )

    @staticmethod
    def _channels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> rgb [WORKING_SIZE, WORKING_SIZE, 3] in [0, 1], hue in degrees, chroma in [0, 1]."""
        picture = Image.fromarray(np.asarray(image, dtype=np.uint8)).convert("RGB")
        if picture.size != (WORKING_SIZE, WORKING_SIZE):
            picture = picture.resize((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BICUBIC)
        rgb = np.asarray(picture, dtype=np.float32) / 255
        red, green, blue = rgb[:, :, 0], rgb[:, :, 1], rgb[:, :, 2]
        opponent = (red - 0.5 * (green + blue)) + 1j * (np.sqrt(3) / 2) * (green - blue)
        chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
        return rgb, np.degrees(np.angle(opponent)) % 360, chroma

    @staticmethod
    def _split_by_hue(part: np.ndarray, hue: np.ndarray) -> list[np.ndarray]:
        """Parts of one colour stay whole; where two colours touch, each gets the pixels nearest to it."""
        names = np.array(list(COLORS.values()), dtype=np.float32)
        nearest = _hue_distance(hue[part][:, None], names[None, :]).argmin(axis=1)
        shares = np.bincount(nearest, minlength=len(names)) / len(nearest)
        if shares.max() >= 0.85:
            return [part]
        masks = []
        labels = np.full(part.shape, -1)
        labels[part] = nearest
        for color in np.flatnonzero(shares > 0.1):
            pieces, count = ndimage.label(labels == color)
            masks += [pieces == piece for piece in range(1, count + 1)]
        return masks

    @staticmethod
    def _read_part(
        mask: np.ndarray, others: np.ndarray, rgb: np.ndarray, hue: np.ndarray, chroma: np.ndarray
    ) -> Found | None:
        """mask: the part's pixels; others: those of all other parts; both [height, width] bool."""
        core = mask & (chroma >= np.quantile(chroma[mask], 1 - CORE_SHARE))
        if np.median(chroma[core]) < LEAST_CORE_CHROMA:
            return None
        mean_hue = np.degrees(np.angle(np.exp(1j * np.radians(hue[core])).mean())) % 360
        color = min(COLORS, key=lambda name: float(_hue_distance(mean_hue, COLORS[name])))
        if _hue_distance(mean_hue, COLORS[color]) > HUE_TOLERANCE:
            return None
        # How much of each pixel is object: its place between the background's colour and the object's. Brightness
        # takes part in it, so that outlines stay sharp where chroma is smeared, as by JPEG.
        near = ndimage.binary_dilation(mask, iterations=3) & ~others
        around = ndimage.binary_dilation(near, iterations=3) & ~near & ~others
        if not around.any():
            return None
        background = np.median(rgb[around], axis=0)
        contrast = np.median(rgb[core], axis=0) - background
        soft = np.where(near, ((rgb - background) @ contrast / (contrast @ contrast)).clip(0, 1), 0)
        shape, match, radius, y, x = _match_shape(soft)
        radius /= WORKING_SIZE
        if match < LEAST_MATCH or not RADIUS_RANGE[0] <= radius <= RADIUS_RANGE[1]:
            return None
        size = "small" if radius < SIZE_BORDER else "large"
        return Found(shape, color, size, (x + 0.5) / WORKING_SIZE, (y + 0.5) / WORKING_SIZE, radius, match)

    @staticmethod
    def _assign(found: list[Found], objects: tuple[Object, ...]) -> dict[int, Found]:
        """Each object's counterpart: the pairing with least distance, attributes breaking near ties."""
        if not found:
            return {}
        cost = np.array(
            [
                [
                    np.hypot(f.x - o.x, f.y - o.y) + 0.1 * (f.color != o.color) + 0.05 * (f.shape != o.shape)
                    for f in found
                ]
                for o in objects
            ]
        )
        rows, columns = linear_sum_assignment(cost)
        return {int(row): found[column] for row, column in zip(rows, columns, strict=True)}
