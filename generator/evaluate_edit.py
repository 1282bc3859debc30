"""Measures on `shapes` what the shared token space is good for: re-ranking, inpainting, interpolation.

    python -m generator.evaluate_edit rerank      --model DIR --count 500 --candidates 8 --out rerank.json
    python -m generator.evaluate_edit inpaint     --model DIR --count 200 --out inpaint.json
    python -m generator.evaluate_edit interpolate --model DIR --count 200 --out interpolate.json

ShapesChecker judges. Case i is the same whatever --count is. What is done lies case by case in OUT's .rows.jsonl, so
the same command with this or a larger --count goes on where it was stopped. The cases: generator/edit_studies.py
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from encoder.commands import add_device_argument, usable_device
from generator.draw import add_drawing_options, drawing_options
from generator.edit_studies import INPAINT, INTERPOLATE, MOST_CANDIDATES, RERANK
from generator.pipeline import load_pipeline
from training.cli import print_report, run_cli
from training.shapes.write import SPLITS

STUDIES = {"rerank": RERANK, "inpaint": INPAINT, "interpolate": INTERPOLATE}


def read_rows(path: Path, settings: dict) -> list[dict]:
    """The cases done so far; a new file gets the settings as its first line.

    Raises:
        ValueError: the file holds cases of other settings.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings) + "\n")
        return []
    whole, _, _ = path.read_text().rpartition("\n")  # a line that a stop cut short has no end
    path.write_text(whole + "\n")
    first, *rows = map(json.loads, whole.splitlines())
    if first != settings:
        changed = ", ".join(name for name in {**settings, **first} if first.get(name) != settings.get(name))
        raise ValueError(f"{path} holds cases measured with another {changed}: name another --out, or delete it.")
    return rows


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m generator.evaluate_edit", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (what, _, _) in STUDIES.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        command.add_argument("--model", required=True, help="folder of an OpenVision3Pipeline that draws `shapes`")
        command.add_argument("--count", type=int, required=True, help="cases")
        command.add_argument("--split", choices=SPLITS, default="test_iid", help="default %(default)s")
        command.add_argument("--out", required=True, type=Path, help="report to write, .json")
        if name == "rerank":
            command.add_argument("--candidates", type=int, default=8,
                                 help=f"drawings per prompt, at most {MOST_CANDIDATES} (default 8)")  # fmt: skip
        add_drawing_options(command, guidance=5.0, steps=25)
        add_device_argument(command)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    _, measure, summarise = STUDIES[arguments.command]
    if arguments.count < 1:
        raise ValueError(f"--count is {arguments.count}: it must be at least 1.")
    case = {"split": arguments.split, "seed": arguments.seed}
    if arguments.command == "rerank":
        case["candidates"] = arguments.candidates
        if not 1 <= arguments.candidates <= MOST_CANDIDATES:
            raise ValueError(f"--candidates is {arguments.candidates}: it must be from 1 to {MOST_CANDIDATES}.")
    options = drawing_options(arguments)
    settings = json.loads(json.dumps({"study": arguments.command, "model": arguments.model, **case, **options}))
    done = arguments.out.with_suffix(".rows.jsonl")
    rows = read_rows(done, settings)
    pipeline = load_pipeline(arguments.model).to(usable_device(arguments.device))
    pipeline.set_progress_bar_config(disable=True)
    with open(done, "a") as file:
        for index in tqdm(range(len(rows), arguments.count), desc=arguments.command, mininterval=5):
            rows.append(measure(pipeline, index, **case, **options))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    report = {"settings": settings, "count": arguments.count, **summarise(rows[: arguments.count])}
    print_report(report, arguments.out)


if __name__ == "__main__":
    run_cli(main)
