"""Judges what a generator draws: each drawing of `shapes` by its prompt, and many drawings together by their features.

    python -m generator.evaluate --model runs/generator --count 500 --split test_iid --out report.json
    python -m generator.evaluate --model runs/generator --count 5000 --categories --out fid.json \\
        --real data/64/test_iid --features runs/features.safetensors --npz drawings.npz

By prompt: ShapesChecker on categories as GenEval has them (generator/prompts.py), with N and the 95% Wilson interval of
every share. Beside it: the ceiling (real pictures with the same prompts, encoded and decoded: what decoder and checker
let through), whether number, colours and shapes alone were right, with --nearest the training picture whose caption is
nearest to the prompt, and in how many places and sizes 16 drawings of one prompt come. A grid lies beside the report.

Together: Frechet distance, kernel distance (KID), precision and recall against the first --count pictures of --real in
the --features of python -m generator.features (or `inception`), and the same for these pictures encoded and decoded. A
generator of text draws one caption of each; one of classes draws every class equally often. --npz is what ADM's
evaluator reads: arr_0 uint8 [N, height, width, 3].

Drawing i has the same scene, prompt and noise whatever --count and --batch are. Choose --guidance on val.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from encoder.commands import add_device_argument, usable_device
from encoder.images import picture_grid, to_pixel_values
from generator.distribution import balanced_labels, compare, decoded, draw_many, real_pictures
from generator.draw import add_drawing_options, drawing_options
from generator.editing import picture_size, reconstruct
from generator.features import Features, load_features
from generator.flow import picture_generators
from generator.nearest import NearestCaption
from generator.pipeline import OpenVision3Pipeline, load_pipeline
from generator.prompts import CATEGORIES, prompt_at
from training.cli import run_cli
from training.shapes import Scene, ShapesChecker, caption_facts, render
from training.shapes.scene import place_of
from training.shapes.write import SPLITS
from training.statistics import share

GRID_PICTURES = 64
NOISE_STEP = 10_000_000  # categories do not share noise: drawing i of category c has the noise NOISE_STEP * c + i
DIVERSITY_PROMPTS, DIVERSITY_SEEDS = 16, 16
CHECKER = ShapesChecker()


def reconstructed(pipeline: OpenVision3Pipeline, scenes: list[Scene]) -> list[Image.Image]:
    """Real pictures through tokens and back: the ceiling of drawing."""
    size, _ = picture_size(pipeline)
    return reconstruct(pipeline, to_pixel_values([render(scene, size) for scene in scenes], size))


def judge(picture: Image.Image, prompt: str) -> dict[str, bool]:
    """right: all that the prompt says and no more; number, colors, shapes: these alone."""
    facts, found = caption_facts(prompt), CHECKER.read(np.asarray(picture))
    return {
        "right": bool(CHECKER.check_facts(np.asarray(picture), facts)),
        "number": len(found) == len(facts.objects),
        "colors": sorted(each.color for each in found) == sorted(each.color for each in facts.objects),
        "shapes": sorted(each.shape for each in found) == sorted(each.shape for each in facts.objects),
    }


def evaluate_category(
    pipeline: OpenVision3Pipeline, category: str, split: str, count: int, batch: int, seed: int,
    nearest: NearestCaption | None, **options,
) -> tuple[dict, list[Image.Image]]:  # fmt: skip
    """The category's shares and its first drawings. options: arguments of the pipeline's call."""
    judged: dict[str, list[dict[str, bool]]] = {"drawn": [], "ceiling": []}
    if nearest is not None:
        judged["nearest_caption"] = []
    shown: list[Image.Image] = []
    for start in tqdm(range(0, count, batch), desc=f"{split} {category}", mininterval=2):
        indices = range(start, min(start + batch, count))
        scenes, prompts = zip(*(prompt_at(category, split, index, seed) for index in indices), strict=True)
        offset = CATEGORIES.index(category) * NOISE_STEP
        generators = picture_generators(seed, [offset + index for index in indices])
        images = pipeline(list(prompts), generator=generators, **options).images
        pictures = {"drawn": images, "ceiling": reconstructed(pipeline, scenes)}
        if nearest is not None:
            pictures["nearest_caption"] = [nearest.picture(prompt) for prompt in prompts]
        for name, each in pictures.items():
            judged[name] += map(judge, each, prompts)
        shown += images[: max(0, GRID_PICTURES - len(shown))]
    shares = {name: share(sum(each["right"] for each in verdicts), count) for name, verdicts in judged.items()}
    alone = {name: share(sum(each[name] for each in judged["drawn"]), count) for name in ("number", "colors", "shapes")}
    examples = [{"prompt": prompt_at(category, split, index, seed)[1], "right": judged["drawn"][index]["right"]}
                for index in range(min(16, count))]  # fmt: skip
    return {**shares, "alone": alone, "examples": examples}, shown


def layout(picture: Image.Image) -> tuple:
    """Where objects lie and how large they are, as seen."""
    return tuple(sorted((each.size, place_of(each.x, each.y)) for each in CHECKER.read(np.asarray(picture))))


def diversity(pipeline: OpenVision3Pipeline, split: str, prompts: int, seed: int, **options) -> dict:
    """How many different layouts DIVERSITY_SEEDS drawings of one prompt have, the mean over prompts that name one
    object's colour and shape; real: so many pictures of `shapes` with one object."""
    size, _ = picture_size(pipeline)
    different = {"drawn": [], "real": []}
    for index in tqdm(range(prompts), desc=f"{split} diversity", mininterval=2):
        prompt = prompt_at("colors", split, index, seed)[1]
        numbers = [index * DIVERSITY_SEEDS + each for each in range(DIVERSITY_SEEDS)]
        generators = picture_generators(seed, [len(CATEGORIES) * NOISE_STEP + number for number in numbers])
        images = pipeline([prompt] * DIVERSITY_SEEDS, generator=generators, **options).images
        real = [render(prompt_at("colors", split, number, seed)[0], size) for number in numbers]
        for name, pictures in (("drawn", images), ("real", real)):
            different[name].append(len(set(map(layout, pictures))))
    means = {name: float(np.mean(values)) for name, values in different.items()}
    return {"distinct_layouts": means, "seeds": DIVERSITY_SEEDS, "prompts": prompts}


def evaluate_together(
    pipeline: OpenVision3Pipeline, real: str | None, features: Features | None, count: int, batch: int, seed: int,
    **options,
) -> tuple[dict, np.ndarray]:  # fmt: skip
    """Distances to real pictures (none without `features`) and the drawings uint8 [count, height, width, 3].

    Raises:
        ValueError: it draws from text and there are no shards to take captions from, or a picture of theirs has none,
            or they hold too few.
    """
    num_classes, size = pipeline.transformer.config.num_classes, picture_size(pipeline)[0]
    if real is None and num_classes is None:
        raise ValueError("This generator draws from text: name the shards of its captions with --real.")
    pictures, captions = (None, None) if real is None else real_pictures(real, count, size, seed)
    if num_classes is None and not all(captions):
        raise ValueError(f"{real} holds pictures without a caption, from which this generator draws: name others.")
    what = {"prompt": captions} if num_classes is None else {"class_labels": balanced_labels(count, num_classes)}
    drawn = draw_many(pipeline, what, batch, seed, **options)
    if features is None:
        return {}, drawn
    figures = {"drawn": compare(drawn, pictures, features)}
    return {**figures, "ceiling": compare(decoded(pipeline, pictures, batch), pictures, features)}, drawn


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m generator.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of an OpenVision3Pipeline")
    parser.add_argument("--count", type=int, default=500, help="drawings per category, and of all together")
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=["test_iid"], help="one or several, of prompts")
    parser.add_argument("--categories", nargs="*", choices=CATEGORIES, default=list(CATEGORIES),
                        help="which prompts; may be none, and a generator of classes has none")  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, help="report to write, .json; grids lie beside it")
    add_drawing_options(parser, guidance=3.0, steps=25)
    parser.add_argument("--batch", type=int, default=50, help="drawings at a time")
    parser.add_argument("--nearest", metavar="CACHE",
                        help="latent cache of the training pictures, for the nearest-caption baseline")  # fmt: skip
    parser.add_argument("--real", metavar="SHARDS", help="pictures to compare the drawings with, squeezed to squares")
    parser.add_argument("--features", metavar="FILE", help="of python -m generator.features, or `inception`")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="also write the drawings, for ADM's evaluator")
    add_device_argument(parser)
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.batch < 1:
        raise ValueError("--count and --batch must be at least 1.")
    if arguments.features and not arguments.real:
        raise ValueError("--features needs --real, the pictures to compare the drawings with.")
    if arguments.real and not (arguments.features or arguments.npz):
        raise ValueError("--real needs --features, in which to compare the drawings, or --npz, where to write them.")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    device = usable_device(arguments.device)
    features = load_features(arguments.features, device) if arguments.features else None
    pipeline = load_pipeline(arguments.model).to(device)
    pipeline.set_progress_bar_config(disable=True)
    nearest = NearestCaption(arguments.nearest) if arguments.nearest else None
    options, count, batch, seed = drawing_options(arguments), arguments.count, arguments.batch, arguments.seed
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report: dict = {"model": arguments.model, "seed": seed, "settings": options, "splits": {}}
    categories = arguments.categories if pipeline.transformer.config.num_classes is None else []
    if not categories and not arguments.real and not arguments.npz:
        raise ValueError("There is nothing to measure without prompts: give --real with --features, or --npz.")
    if arguments.real or arguments.npz:  # before the prompts, which take longer: it may refuse the shards
        together, drawn = evaluate_together(pipeline, arguments.real, features, count, batch, seed, **options)
        report["together"] = {**together, "count": count, "rounded": "uint8"}
        print(f"together: {together}", flush=True)
        if arguments.npz:
            arguments.npz.parent.mkdir(parents=True, exist_ok=True)
            np.savez(arguments.npz, arr_0=drawn)
    for split in arguments.split if categories else []:
        report["splits"][split] = {}
        for category in categories:
            figures, shown = evaluate_category(pipeline, category, split, count, batch, seed, nearest, **options)
            report["splits"][split][category] = figures
            picture_grid(shown, columns=8).save(arguments.out.with_name(f"{arguments.out.stem}_{split}_{category}.png"))
            parts = (f"{name} {100 * value['value']:.1f}%" for name, value in figures.items() if "value" in value)
            print(f"{split} {category}: {', '.join(parts)}", flush=True)
        found = diversity(pipeline, split, min(count, DIVERSITY_PROMPTS), seed, **options)
        report["splits"][split]["diversity"] = found
        print(f"{split} diversity: {found}", flush=True)
    arguments.out.write_text(json.dumps(report, indent=1))
    print(arguments.out)


if __name__ == "__main__":
    run_cli(main)
