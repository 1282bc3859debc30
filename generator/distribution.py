"""Whether many drawings together look like many pictures: Frechet and kernel distance, precision and recall.

Drawings are rounded to the nearest of a PNG's 256 levels before anything looks at them, as pictures on disk are:
features of unrounded ones differ, and so do those of RAE's own protocol, which cuts off what is between two levels.
Drawing i depends on (seed, i) alone, whatever the batch.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from encoder.data import ImageTextStream
from encoder.images import to_pil, to_pixel_values
from encoder.metrics import frechet_distance
from generator.editing import reconstruct
from generator.features import Features, extract
from generator.flow import picture_generators
from generator.metrics import kernel_distance, precision_recall
from generator.pipeline import OpenVision3Pipeline
from training.shards import sample_rng


def balanced_labels(count: int, num_classes: int) -> list[int]:
    """Class of drawing i: every class equally often, or once more."""
    return [index % num_classes for index in range(count)]


def to_array(images: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of one size -> uint8 [n, height, width, 3]."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def real_pictures(shards: str | Path, count: int, size: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """The first pictures of shards as uint8 [count, size, size, 3], squeezed to squares, and one caption of each.

    The caption is a function of (seed, i); a picture that has a class and no caption gets the empty text.

    Raises:
        ValueError: there are fewer.
    """
    images, captions = [], []
    pairs = islice(ImageTextStream(shards).pairs(), count)
    for index, pair in enumerate(tqdm(pairs, desc="real pictures", total=count, mininterval=2)):
        images += to_pil(to_pixel_values([pair.image], size))
        texts = pair.captions or [""]
        captions.append(texts[sample_rng(seed, 0, index).integers(len(texts))])
    if len(images) < count:
        raise ValueError(f"{shards} holds {len(images)} pictures and {count} are asked for: lower --count.")
    return to_array(images), captions


def draw_many(pipeline: OpenVision3Pipeline, what: dict[str, Sequence], batch: int, seed: int, **options) -> np.ndarray:
    """Drawings uint8 [n, height, width, 3]; what: {"prompt": n texts} or {"class_labels": n numbers}."""
    ((name, values),) = what.items()
    drawn = []
    for start in tqdm(range(0, len(values), batch), desc="drawings", mininterval=2):
        part = list(values[start : start + batch])
        generators = picture_generators(seed, range(start, start + len(part)))
        drawn.append(to_array(pipeline(generator=generators, **{name: part}, **options).images))
    return np.concatenate(drawn)


def decoded(pipeline: OpenVision3Pipeline, pictures: np.ndarray, batch: int) -> np.ndarray:
    """Pictures uint8 [n, height, width, 3] through tokens and back: what a perfect generator would reach."""
    parts = []
    for start in range(0, len(pictures), batch):
        images = [Image.fromarray(each) for each in pictures[start : start + batch]]
        parts.append(to_array(reconstruct(pipeline, to_pixel_values(images, images[0].height))))
    return np.concatenate(parts)


def compare(drawn: np.ndarray, real: np.ndarray, features: Features) -> dict:
    """Every distance between two sets of pictures, uint8 [n, height, width, 3]."""
    a, b = extract(features, drawn), extract(features, real)
    return {"frechet_distance": frechet_distance(a, b), "kernel_distance": kernel_distance(a, b),
            **precision_recall(a, b)}  # fmt: skip
