"""Ratios against what a user would use instead, measured side by side in one run.

    python -m scripts.bench
    python -m scripts.bench --only encoder_against_vit loader

Both sides run interleaved with the same dtype and threads after a warm-up; the figure is the ratio of medians of 5. A
row is a function in `encoder.py`, `mllm.py` or `generator.py` here that takes the device and returns its line, which is
written into docs/benchmarks.md too.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import torch

from scripts.bench import encoder, generator, mllm
from training.cli import run_cli

ROWS = {row.__name__: row for module in (encoder, mllm, generator) for row in module.ROWS}
RESULTS = Path("docs/benchmarks.md")


def machine(device: str) -> str:
    """The hardware that a figure was measured on, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def note(name: str, line: str) -> None:
    """Puts a row's line into docs/benchmarks.md in the place of its last one."""
    old = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    lines = {text.split("`")[1]: text for text in old if text.startswith("- `")} | {name: line}
    rows = [lines[row] for row in ROWS if row in lines]
    RESULTS.write_text("\n".join(["# Benchmarks", "", "Written by `python -m scripts.bench`.", "", *rows]) + "\n")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: bfloat16 and torch.compile")
    parser.add_argument("--only", nargs="+", choices=sorted(ROWS), default=list(ROWS), help="these rows (default: all)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("not run: there is no GPU")
        return
    for name in args.only:
        torch.manual_seed(0)
        line = f"- `{name}`, {time.strftime('%Y-%m-%d')}, {machine(args.device)}: {ROWS[name](args.device)}"
        print(line, flush=True)
        note(name, line)


if __name__ == "__main__":
    run_cli(main)
