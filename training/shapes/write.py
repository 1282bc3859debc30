"""Writes a split of `shapes` in the formats of the real thing.

    python -m training.shapes.write --out data/shapes --split train --count 20000 --size 64

leaves in OUT/SPLIT:
    shards/00000.tar ...   WebDataset: KEY.png and KEY.json {"captions": [...], "description", "label", "scene"}
    images/KEY.png         the same pictures as files, for the rows below (`--question-images`, the first so many)
    questions.json         LLaVA rows: one question and its answer a row, with its kind
    corpus.txt             captions, questions and answers of all scenes, a sentence a line (`--corpus`, so many scenes)
"""

import argparse
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.shapes.questions import questions
from training.shapes.render import render
from training.shapes.scene import Object, Scene, Split, sample_scene
from training.shapes.text import captions
from training.shards import write_shards

SPLITS: tuple[Split, ...] = ("train", "val", "test_iid", "test_combo")


def scene_at(split: Split, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of a split: a function of its arguments alone, so any part of a set can be made again."""
    return sample_scene(np.random.default_rng((seed, SPLITS.index(split), index)), split=split)


def scene_from_dict(values: dict) -> Scene:
    """The inverse of `dataclasses.asdict(scene)`, as stored in a shard's json."""
    return Scene(**{**values, "objects": tuple(Object(**item) for item in values["objects"])})


def png_bytes(scene: Scene, size: int) -> bytes:
    buffer = io.BytesIO()
    render(scene, size).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _samples(split: Split, count: int, size: int, seed: int) -> Iterator[dict[str, str | bytes]]:
    for index in tqdm(range(count), desc=f"{split} {size} px", mininterval=2):
        scene = scene_at(split, index, seed)
        facts = {"captions": captions(scene), "description": scene.description, "label": scene.label,
                 "scene": asdict(scene)}  # fmt: skip
        yield {"__key__": f"{index:08d}", "png": png_bytes(scene, size), "json": json.dumps(facts).encode()}


def question_rows(split: Split, count: int, seed: int) -> list[dict]:
    """LLaVA rows of the first `count` scenes: every question of a scene is a row of its own."""
    rows = []
    for index in range(count):
        for number, question in enumerate(questions(scene_at(split, index, seed))):
            turns = [{"from": "human", "value": f"<image>\n{question.text}"}, {"from": "gpt", "value": question.answer}]
            rows.append(
                {
                    "id": f"{index:08d}-{number}",
                    "image": f"{index:08d}.png",
                    "conversations": turns,
                    "kind": question.kind,
                }
            )
    return rows


def corpus_lines(split: Split, count: int, seed: int) -> Iterator[str]:
    """Captions, questions and answers of the first `count` scenes, without pictures."""
    for index in range(count):
        scene = scene_at(split, index, seed)
        yield from captions(scene)
        for question in questions(scene):
            yield f"{question.text} {question.answer}"


def write(
    out: Path, split: Split, count: int, size: int, seed: int = 0, question_images: int = 0, corpus: int = 0
) -> None:
    """Writes one split below `out/split`; see the module's text."""
    folder = out / split
    write_shards(folder / "shards", _samples(split, count, size, seed))
    if question_images:
        (folder / "images").mkdir(exist_ok=True)
        for index in range(question_images):
            (folder / "images" / f"{index:08d}.png").write_bytes(png_bytes(scene_at(split, index, seed), size))
        rows = question_rows(split, question_images, seed)
        (folder / "questions.json").write_text(json.dumps(rows, indent=0))
    if corpus:
        with open(folder / "corpus.txt", "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in corpus_lines(split, corpus, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; the split's name is added to it")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, required=True, help="pictures")
    parser.add_argument("--size", type=int, default=64, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--question-images", type=int, default=0, help="pictures that get LLaVA question rows")
    parser.add_argument("--corpus", type=int, default=0, help="scenes whose texts go into corpus.txt")
    args = parser.parse_args()
    write(args.out, args.split, args.count, args.size, args.seed, args.question_images, args.corpus)


if __name__ == "__main__":
    main()
