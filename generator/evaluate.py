"""Asks a generator of `shapes` for drawings and judges them by what their prompts say.

    python -m generator.evaluate --model runs/generator --count 500 --split test_iid --out report.json

Three categories: one object, two with a relation, three or four counted. Beside every share: its 95% Wilson interval,
the ceiling (real pictures with the same prompts, encoded and decoded: what decoder and checker let through) and, with
--nearest, the training picture whose caption is nearest to the prompt. A grid of drawings lies beside the report.
Drawing i of a category always has the same scene, prompt and noise, whatever --count and --batch are. Choose --guidance
on val.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from encoder.cache import LatentCache
from encoder.images import picture_grid, to_pil, to_pixel_values
from generator.draw import add_drawing_options, drawing_options
from generator.flow import picture_generators
from generator.pipeline import OpenVision3Pipeline, load_pipeline
from generator.prompts import CATEGORIES, prompt_at
from training.cli import run_cli
from training.shapes import Scene, ShapesChecker, caption_facts, render
from training.shapes.write import SPLITS
from training.statistics import share

GRID_PICTURES = 64


def _right(checker: ShapesChecker, pictures: list[Image.Image], prompts: list[str]) -> list[bool]:
    return [
        bool(checker.check_facts(np.asarray(picture), caption_facts(prompt)))
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]


def reconstructed(pipeline: OpenVision3Pipeline, scenes: list[Scene]) -> list[Image.Image]:
    """Real pictures through tokens and back: the ceiling of drawing."""
    autoencoder = pipeline.autoencoder
    size = pipeline.transformer.grid[0] * autoencoder.patch_size
    pixel_values = to_pixel_values([render(scene, size) for scene in scenes], size).to(autoencoder.device)
    with torch.no_grad():
        return to_pil(autoencoder.decode(autoencoder.encode(pixel_values), grid=pipeline.transformer.grid))


class NearestCaption:
    """The training picture whose caption shares most words and word pairs with the prompt: what copying would do."""

    def __init__(self, folder: str):
        cache = LatentCache([folder])
        self.pixels = cache.pixels
        captions = list(cache.captions)
        self.owner = [index for index, texts in enumerate(captions) for _ in texts]
        self.columns: dict[str, list[int]] = {}
        lengths = []
        for row, text in enumerate(text for texts in captions for text in texts):
            pieces = self._pieces(text)
            lengths.append(len(pieces))
            for piece in pieces:
                self.columns.setdefault(piece, []).append(row)
        self.rows = {piece: np.array(rows) for piece, rows in self.columns.items()}
        self.lengths = np.array(lengths)

    @staticmethod
    def _pieces(text: str) -> set[str]:
        words = text.split()
        return {*words, *(" ".join(pair) for pair in zip(words[:-1], words[1:], strict=True))}

    def picture(self, prompt: str) -> Image.Image:
        pieces = self._pieces(prompt)
        common = np.zeros(len(self.lengths))
        for piece in pieces:
            if piece in self.rows:
                common[self.rows[piece]] += 1
        best = int((common / (self.lengths + len(pieces) - common)).argmax())
        return Image.fromarray(self.pixels[self.owner[best]].permute(1, 2, 0).numpy())


def evaluate_category(
    pipeline: OpenVision3Pipeline, category: str, split: str, count: int, batch: int, seed: int,
    nearest: NearestCaption | None, **options,
) -> tuple[dict, list[Image.Image]]:  # fmt: skip
    """The category's shares and its first drawings. options: arguments of the pipeline's call."""
    checker = ShapesChecker()
    names = ["drawn", "ceiling"] + (["nearest_caption"] if nearest is not None else [])
    hits: dict[str, list[bool]] = {name: [] for name in names}
    shown: list[Image.Image] = []
    for start in tqdm(range(0, count, batch), desc=f"{split} {category}", mininterval=2):
        indices = range(start, min(start + batch, count))
        scenes, prompts = zip(*(prompt_at(category, split, index, seed) for index in indices), strict=True)
        offset = CATEGORIES.index(category) * 10_000_000  # categories do not share noise
        generators = picture_generators(seed, [offset + index for index in indices])
        images = pipeline(list(prompts), generator=generators, **options).images
        hits["drawn"] += _right(checker, images, prompts)
        hits["ceiling"] += _right(checker, reconstructed(pipeline, scenes), prompts)
        if nearest is not None:
            hits["nearest_caption"] += _right(checker, [nearest.picture(prompt) for prompt in prompts], prompts)
        shown += images[: max(0, GRID_PICTURES - len(shown))]
    examples = [{"prompt": prompt_at(category, split, index, seed)[1], "right": hits["drawn"][index]}
                for index in range(min(16, count))]  # fmt: skip
    return {**{name: share(sum(values), len(values)) for name, values in hits.items()}, "examples": examples}, shown


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m generator.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of an OpenVision3Pipeline that draws `shapes` from text")
    parser.add_argument("--count", type=int, default=500, help="drawings per category")
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=["test_iid"], help="one or several splits")
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    parser.add_argument("--out", required=True, type=Path, help="report to write, .json; grids lie beside it")
    add_drawing_options(parser, guidance=3.0, steps=25)
    parser.add_argument("--batch", type=int, default=50, help="drawings at a time")
    parser.add_argument("--nearest", metavar="CACHE",
                        help="latent cache of the training pictures, for the nearest-caption baseline")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.batch < 1:
        raise ValueError("--count and --batch must be at least 1.")
    pipeline = load_pipeline(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    nearest = NearestCaption(arguments.nearest) if arguments.nearest else None
    options = drawing_options(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report: dict = {"model": arguments.model, "seed": arguments.seed, "settings": options, "splits": {}}
    for split in arguments.split:
        report["splits"][split] = {}
        for category in arguments.categories:
            figures, shown = evaluate_category(
                pipeline, category, split, arguments.count, arguments.batch, arguments.seed, nearest, **options
            )
            report["splits"][split][category] = figures
            picture_grid(shown, columns=8).save(arguments.out.with_name(f"{arguments.out.stem}_{split}_{category}.png"))
            parts = (f"{name} {100 * value['value']:.1f}%" for name, value in figures.items() if name != "examples")
            print(f"{split} {category}: {', '.join(parts)}", flush=True)
    arguments.out.write_text(json.dumps(report, indent=1))
    print(arguments.out)


if __name__ == "__main__":
    run_cli(main)
