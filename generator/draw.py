"""Draws pictures from sentences or classes.

    python -m generator.draw --model runs/generator --prompt "a red circle left of a blue square" --out drawing.png

Several --prompt (or one with --count) become a grid. Picture i of a call has the noise (seed, i), whatever is drawn
beside it.
"""

import argparse
import math
from pathlib import Path

from PIL import Image

from encoder.commands import add_device_argument, usable_device
from encoder.images import picture_grid
from generator.flow import METHODS, picture_generators
from generator.pipeline import load_pipeline
from generator.rerank import SCORES, best_of
from training.cli import run_cli


def add_drawing_options(parser: argparse.ArgumentParser, guidance: float, steps: int = 50) -> None:
    """The options of every command that draws; `drawing_options` reads them. guidance, steps: the defaults."""
    parser.add_argument(
        "--seed", type=int, default=0, help="picture i of a call uses noise (seed, i) (default %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=steps, help="steps from noise to picture (default %(default)s)")
    parser.add_argument("--guidance", type=float, default=guidance,
                        help="how strongly the prompt pulls; 1 is no guidance (default %(default)s)")  # fmt: skip
    parser.add_argument(
        "--interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="noise levels between which guidance acts, of 0 to 1; narrower is faster",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=METHODS, default="euler", help="heun looks twice per step (default %(default)s)"
    )


def drawing_options(arguments: argparse.Namespace) -> dict:
    """Arguments of the pipeline's call, and of the calls of generator.editing."""
    return {
        "num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance,
        "guidance_interval": tuple(arguments.interval), "method": arguments.method,
    }  # fmt: skip


def save_pictures(images: list[Image.Image], out: Path, columns: int | None = None) -> None:
    """Writes one picture, or several as a grid, square unless `columns` says how wide."""
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = columns or math.ceil(math.sqrt(len(images)))
    (images[0] if len(images) == 1 else picture_grid(images, columns)).save(out)
    print(out)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m generator.draw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of an OpenVision3Pipeline")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    what.add_argument("--class-label", type=int, action="append", help="class number, for a generator of classes")
    parser.add_argument("--out", required=True, type=Path, help="picture file to write, .png")
    parser.add_argument("--count", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--negative-prompt", help="what to be guided away from; by default the empty text")
    add_drawing_options(parser, guidance=3.0)
    parser.add_argument("--best-of", type=int, default=1, metavar="N",
                        help="draw N per picture and keep the one the encoder likes best")  # fmt: skip
    parser.add_argument("--rank-by", choices=SCORES, default="both",
                        help="the score of --best-of: generator.rerank.token_scores (default %(default)s)")  # fmt: skip
    add_device_argument(parser)
    return parser.parse_args(argv)


def draw(argv: list[str]) -> None:
    arguments = parse(argv)
    if arguments.count < 1 or arguments.best_of < 1:
        raise ValueError("--count and --best-of must be at least 1.")
    pipeline = load_pipeline(arguments.model).to(usable_device(arguments.device))
    what = arguments.prompt if arguments.prompt is not None else arguments.class_label
    options = {**drawing_options(arguments), "negative_prompt": arguments.negative_prompt}
    wanted = [item for item in what for _ in range(arguments.count)]
    if arguments.best_of > 1:
        if arguments.prompt is None:
            raise ValueError("--best-of needs prompts: a class has no text to compare a drawing with.")
        images = [
            best_of(pipeline, prompt, arguments.best_of, seed=arguments.seed, first_index=index * arguments.best_of,
                    score=arguments.rank_by, **options)
            for index, prompt in enumerate(wanted)
        ]  # fmt: skip
    else:
        key = "prompt" if arguments.prompt is not None else "class_labels"
        generators = picture_generators(arguments.seed, range(len(wanted)))
        images = pipeline(generator=generators, **{key: wanted}, **options).images
    save_pictures(images, arguments.out)


if __name__ == "__main__":
    run_cli(draw)
