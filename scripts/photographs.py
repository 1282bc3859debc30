"""Turns the photographs that scikit-image and scikit-learn ship into the formats of all trainings.

    python -m scripts.photographs --out data/photographs

leaves in OUT what `training.shapes.write` leaves for `shapes`, and what your own data needs:
    shards/00000.tar    WebDataset: KEY.png and KEY.json {"captions": [...]}
    images/KEY.png      the same pictures as files
    questions.json      LLaVA rows: {"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", ...}]}
    corpus.txt          captions, questions and answers, a sentence a line
"""

import argparse
import io
import json
from pathlib import Path

from PIL import Image

from training.cli import run_cli
from training.shards import write_shards

# key -> captions, and questions with their answers.
TEXTS: dict[str, tuple[list[str], list[tuple[str, str]]]] = {
    "astronaut": (["a smiling astronaut in an orange space suit", "a portrait of a woman in front of a flag"],
                  [("what color is the space suit?", "orange"), ("how many people are there?", "one")]),
    "chelsea": (["a close view of a tabby cat", "a cat looks at the camera"],
                [("what animal is this?", "cat"), ("is there a dog?", "no")]),
    "coffee": (["a cup of coffee on a saucer with a spoon", "coffee on a wooden table"],
               [("what is in the cup?", "coffee"), ("is there a spoon?", "yes")]),
    "rocket": (["a rocket on its launch pad at night", "a white rocket before launch"],
               [("what is on the launch pad?", "rocket"), ("is it day?", "no")]),
    "hubble_deep_field": (["many galaxies on a black sky", "a deep view into space"],
                          [("what color is the sky?", "black"), ("is there a cat?", "no")]),
    "retina": (["the back of a human eye with its blood vessels", "an orange retina on black"],
               [("what is shown?", "retina"), ("what color is the background?", "black")]),
    "immunohistochemistry": (["a stained slice of tissue under the microscope", "brown and blue cells"],
                             [("what is shown?", "tissue"), ("is there a rocket?", "no")]),
    "china": (["a temple with a curved roof among trees", "a chinese building in daylight"],
              [("what building is this?", "temple"), ("is there a tree?", "yes")]),
    "flower": (["a red and yellow flower before dark leaves", "a blooming flower"],
               [("what plant is this?", "flower"), ("is there a car?", "no")]),
}  # fmt: skip


def photographs() -> dict[str, Image.Image]:
    """The colour photographs that need no download, by key.

    Raises:
        ValueError: scikit-image or scikit-learn is not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ValueError(
            f"The photographs come with scikit-image and scikit-learn: pip install .[eval] ({error})."
        ) from error
    pictures = {key: Image.fromarray(getattr(data, key)()) for key in TEXTS if hasattr(data, key)}
    for key in ("china", "flower"):
        pictures[key] = Image.fromarray(load_sample_image(f"{key}.jpg"))
    return {key: pictures[key].convert("RGB") for key in TEXTS}


def prepare(out: Path, longest: int) -> int:
    """Writes shards, images, questions and corpus; returns the number of pictures."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    samples, rows, lines = [], [], []
    for key, picture in photographs().items():
        captions, asked = TEXTS[key]
        picture.thumbnail((longest, longest))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        (out / "images" / f"{key}.png").write_bytes(buffer.getvalue())
        samples.append({"__key__": key, "png": buffer.getvalue(), "json": json.dumps({"captions": captions}).encode()})
        for number, (question, answer) in enumerate(asked):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            rows.append({"id": f"{key}-{number}", "image": f"{key}.png", "conversations": turns})
            lines.append(f"{question} {answer}")
        lines += captions
    (out / "questions.json").write_text(json.dumps(rows, indent=1))
    (out / "corpus.txt").write_text("".join(f"{line}\n" for line in lines))
    return write_shards(out / "shards", samples)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.photographs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--longest", type=int, default=256, help="longer sides are reduced to so many pixels")
    args = parser.parse_args(argv)
    print(f"{prepare(args.out, args.longest)} photographs in {args.out}")


if __name__ == "__main__":
    run_cli(main)
