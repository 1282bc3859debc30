"""What generator.evaluate_edit measures: one case of each study as a row, and many rows as figures.

A row is a dictionary of plain numbers; a case is a function of (split, seed, index). Every pipeline draws with the
options of its call.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from encoder.images import to_pil, to_pixel_values
from generator.editing import inpaint, interpolate, picture_size, reconstruct
from generator.flow import picture_generators
from generator.pipeline import OpenVision3Pipeline
from generator.prompts import prompt_at
from generator.rerank import SCORES, combined, describe, likeliest, score_parts
from training.shapes import Object, Scene, ShapesChecker, caption_facts, captions, render, sample_scene
from training.shapes.write import SPLITS
from training.statistics import share

MOST_CANDIDATES = 1000  # noise of prompt i: (seed, MOST_CANDIDATES * i + candidate)
ATTEMPTS = 4  # at one inpainting
MOVED = 0.05  # of the picture's side, 3 px of 64: a kept object whose centre moved less is where it was
MARGIN = 0.02  # around an object, of the picture's side: what a mask covers beside it, and its neighbour keeps free
CHECKER = ShapesChecker()


def rerank_case(
    pipeline: OpenVision3Pipeline, index: int, split: str, seed: int, candidates: int, **options
) -> dict:
    """Draws prompt number `index` of two objects so often, scores the tokens and judges every drawing."""
    _, prompt = prompt_at("two_with_relation", split, index, seed)
    generators = picture_generators(seed, [MOST_CANDIDATES * index + each for each in range(candidates)])
    start = time.perf_counter()
    tokens = pipeline([prompt] * candidates, generator=generators, output_type="latent", **options).images
    tokens = tokens.cpu()  # a GPU has drawn them when they are here
    drawn = time.perf_counter()
    scores = {name: part.cpu().tolist() for name, part in score_parts(pipeline, tokens, prompt).items()}
    ranked = time.perf_counter()
    facts = caption_facts(prompt)
    pictures = pipeline.decode(pipeline.to_grid(tokens))
    right = [CHECKER.check_facts(np.asarray(picture), facts) for picture in pictures]
    return {"prompt": prompt, "right": right, **scores, "draw_seconds": drawn - start, "rank_seconds": ranked - drawn}


def _picked(rows: Sequence[dict], score: str, group: slice) -> list[bool]:
    """Whether each row's best of a group of its candidates is right."""
    names, picked = SCORES[score], []
    for row in rows:
        parts = [torch.tensor(row[name][group], dtype=torch.float64) for name in names]
        picked.append(row["right"][group][int(combined(parts).argmax())])
    return picked


def _gap_closed(random: np.ndarray, picked: np.ndarray, oracle: np.ndarray) -> dict:
    """(picked - random) / (oracle - random) over the prompts with its 95% interval from 1,000 bootstraps over prompts;
    None without a gap."""
    if (oracle == random).all():
        return {"value": None, "interval": None}

    def closed(chosen: np.ndarray) -> float:
        gap = oracle[chosen].mean() - random[chosen].mean()
        return float((picked[chosen].mean() - random[chosen].mean()) / gap) if gap > 0 else np.nan

    rng, count = np.random.default_rng(0), len(random)
    draws = [closed(rng.integers(count, size=count)) for _ in range(1000)]
    return {"value": closed(np.arange(count)), "interval": np.nanpercentile(draws, [2.5, 97.5]).tolist()}


def rerank_figures(rows: Sequence[dict]) -> dict:
    """Shares for the best of n = 1, 2, 4, ... candidates; random: the mean over them, what a blind pick gives on
    average; oracle: any of them right. All whole groups of n among a prompt's candidates count."""
    candidates, figures, n = len(rows[0]["right"]), {}, 1
    while n <= candidates:
        groups = [slice(start, start + n) for start in range(0, candidates - n + 1, n)]
        random = np.array([np.mean(row["right"]) for row in rows])
        oracle = np.mean([[any(row["right"][group]) for row in rows] for group in groups], axis=0)
        figures[n] = {"random": float(random.mean()), "oracle": float(oracle.mean())}
        for score in ("both", *SCORES["both"]):
            picked = np.mean([_picked(rows, score, group) for group in groups], axis=0)
            figures[n][score] = {"picked": float(picked.mean()), "gap_closed": _gap_closed(random, picked, oracle)}
        n *= 2
    ranked, drawn = (sum(row[f"{what}_seconds"] for row in rows) for what in ("rank", "draw"))
    return {"best_of": figures, "rank_share_of_drawing": ranked / drawn, "draw_seconds": drawn, "rank_seconds": ranked}


def _patches(obj: Object, rows: int) -> np.ndarray:
    """The token patches that an object and its margin touch, [rows, rows] bool."""
    edges = np.arange(rows) / rows
    reach = obj.radius + MARGIN
    columns, lines = ((edges < middle + reach) & (edges + 1 / rows > middle - reach) for middle in (obj.x, obj.y))
    return lines[:, None] & columns[None, :]


def inpainting_at(split: str, index: int, seed: int, rows: int) -> tuple[Scene, Scene, str, np.ndarray]:
    """Scene with two objects, the scene wanted, its caption, and the patches [rows, rows] to draw anew.

    The wanted scene is the other one's with a new colour and shape for the second object, which shares no token's patch
    with the first.
    """
    rng = np.random.default_rng((seed, 101, SPLITS.index(split), index))
    while True:
        scene = sample_scene(rng, split=split, num_objects=2)
        other = sample_scene(rng, split=split, num_objects=1).objects[0]
        kept, old = scene.objects
        used = {kept.shape, kept.color, old.shape, old.color}
        if (_patches(kept, rows) & _patches(old, rows)).any() or used & {other.shape, other.color}:
            continue
        wanted = replace(scene, objects=(kept, replace(old, shape=other.shape, color=other.color)))
        return scene, wanted, captions(wanted)[0], _patches(old, rows)


def _judge_inpainting(picture: Image.Image, wanted: Scene, prompt: str) -> dict[str, bool]:
    found = CHECKER.read(np.asarray(picture))
    kept, new = wanted.objects
    named = [(each.shape, each.color) for each in found]
    same = [each for each in found if (each.shape, each.color, each.size) == (kept.shape, kept.color, kept.size)]
    return {
        "kept_unchanged": any(np.hypot(each.x - kept.x, each.y - kept.y) < MOVED for each in same),
        "new_obeys": named.count((new.shape, new.color)) == 1 and len(found) == 2,
        "new_color": any(color == new.color for _, color in named),
        "new_shape": any(shape == new.shape for shape, _ in named),
        "all_right": bool(CHECKER.check_facts(np.asarray(picture), caption_facts(prompt))),
    }


def inpaint_case(pipeline: OpenVision3Pipeline, index: int, split: str, seed: int, **options) -> dict:
    """Replaces one object of two by what the prompt says, ATTEMPTS times: the first, and the one that the encoder
    likes best; beside them the wanted picture through encoder and decoder."""
    side, _ = picture_size(pipeline)
    rows, _ = pipeline.transformer.grid
    scene, wanted, prompt, patches = inpainting_at(split, index, seed, rows)
    mask = torch.from_numpy(np.kron(patches, np.ones((side // rows, side // rows), dtype=bool)))
    generators = picture_generators(seed, [ATTEMPTS * index + each for each in range(ATTEMPTS)])
    pixel_values, ceiling = to_pixel_values([render(each, side) for each in (scene, wanted)], side).split(1)
    start = time.perf_counter()
    tokens = inpaint(
        pipeline, pixel_values.expand(ATTEMPTS, -1, -1, -1), mask, prompt, generator=generators, output_type="latent",
        **options,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    pictures = {"drawn": pipeline.decode(pipeline.to_grid(tokens[:1]))[0], "best": likeliest(pipeline, tokens, prompt),
                "ceiling": reconstruct(pipeline, ceiling)[0]}  # fmt: skip
    judged = {who: _judge_inpainting(picture, wanted, prompt) for who, picture in pictures.items()}
    return {"prompt": prompt, "seconds": seconds, **judged}


def inpaint_figures(rows: Sequence[dict]) -> dict:
    """kept_unchanged: the other object has its shape, colour, size and place (within MOVED); new_obeys: there is the
    named object and no third; all_right: the whole prompt holds."""
    pictures = [name for name, value in rows[0].items() if isinstance(value, dict)]
    figures = {name: {who: share(sum(row[who][name] for row in rows), len(rows)) for who in pictures}
               for name in rows[0]["drawn"]}  # fmt: skip
    return {**figures, "seconds": sum(row["seconds"] for row in rows)}


def interpolate_case(pipeline: OpenVision3Pipeline, index: int, split: str, seed: int, **options) -> dict:
    """The middle between two scenes, without a prompt and with what the encoder reads in the first; beside it the mean
    of their pictures, of their tokens, and both ends decoded."""
    side, _ = picture_size(pipeline)
    rng = np.random.default_rng((seed, 102, SPLITS.index(split), index))
    scenes = [sample_scene(rng, split=split) for _ in range(2)]
    ends = to_pixel_values([render(scene, side) for scene in scenes], side)
    start = time.perf_counter()
    middle, described = (
        interpolate(
            pipeline, *ends.split(1), [0.5], prompt=prompt, generator=picture_generators(seed, [index])[0], **options
        )
        for prompt in ("", describe(pipeline, ends[:1])[0])
    )
    seconds = time.perf_counter() - start
    mean_tokens = pipeline.decode(pipeline.encode(ends).mean(dim=0, keepdim=True))
    pictures = {"middle": middle, "middle_described": described, "mean_of_tokens": mean_tokens,
                "mean_of_pictures": to_pil(ends.mean(dim=0, keepdim=True)),
                "ends": reconstruct(pipeline, ends)}  # fmt: skip
    valid = {name: [CHECKER.is_scene(np.asarray(each)) for each in images] for name, images in pictures.items()}
    return {"captions": [captions(scene)[0] for scene in scenes], "seconds": seconds, "valid": valid}


def interpolate_figures(rows: Sequence[dict]) -> dict:
    """Shares of pictures that are scenes of clean objects, ShapesChecker.is_scene."""
    figures = {}
    for name in rows[0]["valid"]:
        valid = [each for row in rows for each in row["valid"][name]]
        figures[name] = share(sum(valid), len(valid))
    return {**figures, "seconds": sum(row["seconds"] for row in rows)}


# What it measures, one case, and many rows as figures.
RERANK = ("the best of n drawings by the encoder's heads, against a random one and an oracle", rerank_case,
          rerank_figures)  # fmt: skip
INPAINT = ("one object of two replaced by another", inpaint_case, inpaint_figures)
INTERPOLATE = ("pictures half way between two", interpolate_case, interpolate_figures)
