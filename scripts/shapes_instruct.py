"""LLaVA's two data sets out of `shapes`: captions for the first stage, captions and questions mixed for the second.

    python -m training.shapes.write --out data/tiny --split train --count 4000 --size 64 --question-images 4000
    python -m scripts.shapes_instruct --out data/tiny/train --count 4000

leaves beside the pictures
    captions.json   as blip_laion_cc_sbu_558k: a picture and its fullest caption a row
    instruct.json   as llava_v1_5_mix665k: of each picture that caption, asked for, and three of its questions, shuffled

A caption has about 16 trained tokens, an answer 2: where only a hundred steps can be paid for, captions teach more.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from training.cli import run_cli
from training.shapes.text import captions
from training.shapes.write import question_rows, scene_at

QUESTIONS = 3
ASK = "describe the picture."


def caption_row(index: int, question: str) -> dict:
    """A row of train scene `index`; the longest wording names the most facts."""
    caption = max(captions(scene_at("train", index)), key=len)
    turns = [{"from": "human", "value": f"<image>\n{question}".strip()}, {"from": "gpt", "value": caption}]
    return {"id": f"{index:08d}-caption", "image": f"{index:08d}.png", "conversations": turns}


def instruct_rows(count: int, seed: int) -> list[dict]:
    """The mixed rows of the first `count` scenes."""
    generator = np.random.default_rng(seed)
    by_picture: dict[str, list[dict]] = {}
    for row in question_rows("train", count, 0):
        by_picture.setdefault(row["image"], []).append(row)
    rows = [caption_row(index, ASK) for index in range(count)]
    for own in by_picture.values():
        rows += [own[chosen] for chosen in generator.permutation(len(own))[:QUESTIONS]]
    return [rows[index] for index in generator.permutation(len(rows))]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.shapes_instruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--count", type=int, required=True, help="only the first so many pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of questions and the order")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (
        ("captions", [caption_row(index, "") for index in range(args.count)]),
        ("instruct", instruct_rows(args.count, args.seed)),
    ):
        (args.out / f"{name}.json").write_text(json.dumps(rows, indent=0))
        print(f"{len(rows):,} rows in {args.out / name}.json")


if __name__ == "__main__":
    run_cli(main)
