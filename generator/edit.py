"""Edits pictures in the shared token space, by the functions of generator.editing.

    python -m generator.edit variation   --model DIR --image cat.png --strength 0.6 --count 4 --out variations.png
    python -m generator.edit interpolate --model DIR --image cat.png dog.png --count 5 --out between.png
    python -m generator.edit inpaint     --model DIR --image cat.png --mask mask.png --prompt "a hat" --out hat.png
    python -m generator.edit reconstruct --model DIR --image cat.png --out again.png

Every option: python -m generator.edit COMMAND --help. --describe takes for a prompt what the encoder reads in the
picture; --best-of keeps, of so many attempts at one inpainting, the one that it likes best (generator.rerank).
"""

import argparse
from pathlib import Path

from PIL import Image
from torch import Tensor

from encoder.commands import add_device_argument, usable_device
from encoder.images import load_image, to_pixel_values
from generator.draw import add_drawing_options, drawing_options, save_pictures
from generator.editing import inpaint, interpolate, picture_size, reconstruct, variation
from generator.flow import picture_generators
from generator.pipeline import OpenVision3Pipeline, load_pipeline
from generator.rerank import check_heads, describe, likeliest
from training.cli import run_cli


def _add_command(commands: argparse._SubParsersAction, name: str, what: str, pictures: int) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    command.add_argument("--model", required=True, help="folder of an OpenVision3Pipeline")
    command.add_argument("--image", required=True, nargs=pictures, type=Path, metavar="FILE", help="what to work on")
    command.add_argument("--out", required=True, type=Path, help="picture file to write, .png; several become a grid")
    add_device_argument(command)
    return command


def _add_drawing(
    command: argparse.ArgumentParser, count: int, count_help: str, guidance: float, describe: str | None = None
) -> None:
    command.add_argument("--count", type=int, default=count, help=f"{count_help} (default %(default)s)")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--prompt", default="", help="what the result should show; without it the picture decides")
    what.add_argument("--class-label", type=int, help="the same for a generator of classes")
    if describe is not None:
        what.add_argument("--describe", action="store_true",
                          help=f"take for a prompt what the encoder's caption head reads in {describe}")  # fmt: skip
    add_drawing_options(command, guidance)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m generator.edit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    strength = {"type": float, "help": "noise level to go up to, above 0; 1 keeps nothing (default %(default)s)"}
    command = _add_command(commands, "variation", "other pictures like this one", pictures=1)
    command.add_argument("--strength", default=0.7, **strength)
    _add_drawing(command, 1, "how many variations", guidance=1.0, describe="the picture")
    command = _add_command(commands, "interpolate", "a row of pictures from one to another", pictures=2)
    command.add_argument("--strength", default=0.8, **strength)
    _add_drawing(command, 5, "how many pictures between the two", guidance=1.0, describe="the nearer one")
    command = _add_command(commands, "inpaint", "draws what a mask covers anew and keeps the rest", pictures=1)
    command.add_argument("--mask", required=True, type=Path, help="picture, white where to draw anew")
    command.add_argument("--resamples", type=int, default=3,
                         help="how often a step is done, so that new and old agree (default %(default)s)")  # fmt: skip
    command.add_argument("--best-of", type=int, default=1, metavar="N",
                         help="draw N per picture and keep the likeliest, see generator.draw")  # fmt: skip
    _add_drawing(command, 1, "how many pictures", guidance=3.0)
    _add_command(commands, "reconstruct", "the picture through the encoder and back", pictures=1)
    return parser.parse_args(argv)


def _inpaint(
    pipeline: OpenVision3Pipeline, pixel_values: Tensor, mask: Tensor, arguments: argparse.Namespace, options: dict
) -> list[Image.Image]:
    """--count pictures, each the likeliest of --best-of attempts; attempt i has the noise (seed, i)."""
    count, attempts, options = arguments.count, arguments.best_of, {**options, "resamples": arguments.resamples}
    generators = picture_generators(arguments.seed, range(count * attempts))
    if attempts == 1:
        return inpaint(pipeline, pixel_values.expand(count, -1, -1, -1), mask, generator=generators, **options)
    if not options["prompt"]:
        raise ValueError("--best-of needs a --prompt, to which the attempts are compared.")
    check_heads(pipeline, "both")
    pixel_values, images = pixel_values.expand(attempts, -1, -1, -1), []
    for start in range(0, count * attempts, attempts):
        own = generators[start : start + attempts]
        tokens = inpaint(pipeline, pixel_values, mask, generator=own, output_type="latent", **options)
        images.append(likeliest(pipeline, tokens, options["prompt"]))
    return images


def edit(argv: list[str]) -> None:
    """The command: reads the pictures, edits and writes one picture file."""
    arguments = parse(argv)
    pipeline = load_pipeline(arguments.model).to(usable_device(arguments.device))
    height, width = picture_size(pipeline)
    pixel_values = to_pixel_values([load_image(path) for path in arguments.image], height)
    if arguments.command == "reconstruct":
        save_pictures(reconstruct(pipeline, pixel_values), arguments.out)
        return
    count = arguments.count
    for name in ("count", "best_of"):
        if getattr(arguments, name, 1) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: it must be at least 1.")
    options = {
        **drawing_options(arguments),
        "class_labels": None if arguments.class_label is None else [arguments.class_label],
    }  # fmt: skip
    generators = picture_generators(arguments.seed, range(count))
    described = getattr(arguments, "describe", False)
    texts = describe(pipeline, pixel_values) if described else [arguments.prompt] * len(pixel_values)
    if described:
        print("\n".join(texts))
    if arguments.command == "interpolate":
        weights = [index / (count + 1) for index in range(count + 2)]
        options["prompt"] = [texts[weight > 0.5] for weight in weights]
        options |= {"strength": arguments.strength, "generator": generators[0]}
        images = interpolate(pipeline, *pixel_values.split(1), weights, **options)
        save_pictures(images, arguments.out, columns=len(images))
        return
    options["prompt"] = texts[0]
    if arguments.command == "variation":
        pictures = pixel_values.expand(count, -1, -1, -1)
        images = variation(pipeline, pictures, arguments.strength, generator=generators, **options)
    else:
        mask = load_image(arguments.mask).convert("L").resize((width, height), Image.Resampling.NEAREST)
        white = (to_pixel_values([mask], height) > 0).all(dim=1)[0]
        images = _inpaint(pipeline, pixel_values, white, arguments, options)
    save_pictures(images, arguments.out)


if __name__ == "__main__":
    run_cli(edit)
