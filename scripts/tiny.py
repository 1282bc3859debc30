"""`make tiny`: every training of the family from scratch at 64 px, its evaluation, and a report.

    python -m scripts.tiny [--out runs/tiny] [--scale 1.0]

Each part is a command of this project, printed before it runs, with its log in OUT/logs. Killed and started again, it goes
on where it was. The VAE is the one that ships (demo/checkpoints/vae); nothing else is read from there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.tiny_report import write_report
from training.cli import run_cli

VAE = Path("demo/checkpoints/vae")


@dataclass(frozen=True)
class Part:
    """A command, and the minutes it took where the estimate was measured (2 cores of an AMD EPYC, AVX2)."""

    name: str
    minutes: float
    command: list[str]


def parts(out: Path, vae: Path, scale: float) -> list[Part]:
    """Everything `make tiny` runs, in order. `scale` multiplies the steps of every training."""
    data = out / "data"

    def write(split: str, count: int, size: int, *more: str) -> list[str]:
        return ["training.shapes.write", f"--out={data}/{size}", f"--split={split}", f"--count={count}",
                f"--size={size}", *more]

    def train(module: str, recipe: str, steps: int, *overrides: str) -> list[str]:
        return [module, recipe, f"trainer.max_steps={max(2, round(steps * scale))}", *overrides]

    train_64, corpus = data / "64" / "train", data / "64" / "train" / "corpus.txt"
    questions = [f"data={train_64}/questions.json", f"images={train_64}/images"]
    autoencoder, mllm = out / "encoder" / "autoencoder", out / "mllm"
    steps = [
        Part("data", 0.6, write("train", 20000, 64, "--question-images=12000", "--corpus=12000")),
        Part("data 128 px", 0.1, write("train", 512, 128)),
        *(Part(f"data {split}", 0.1, write(split, 500, 64, "--question-images=250"))
          for split in ("test_iid", "test_combo")),
        Part("tokenizer", 0.2, ["encoder.train_tokenizer", f"--corpus={corpus}", f"--out={out}/tokenizer"]),
        *(Part(f"latents {size} px", minutes, ["encoder.cache_latents", f"--shards={data}/{size}/train/shards",
                                              f"--vae={vae}", f"--image-size={size}", f"--out={out}/cache{size}"])
          for size, minutes in ((64, 2.0), (128, 0.2))),
        Part("encoder", 12.0, train("encoder.train", "encoder/recipes/tiny.yaml", 700, f"output_dir={out}/encoder",
                                    f"cache={out}/cache64", f"vae={vae}", f"tokenizer={out}/tokenizer")),
        Part("encoder 128 px, a few steps", 0.7, [
            "encoder.train", "encoder/recipes/tiny_128.yaml", "trainer.max_steps=5", f"output_dir={out}/encoder128",
            f"cache={out}/cache128", f"vae={vae}", f"tokenizer={out}/tokenizer",
            f"init_from={out}/encoder/pretraining", "trainer.per_device_train_batch_size=32"]),
        Part("encoder, evaluation", 1.0, ["encoder.evaluate", f"--model={autoencoder}", "--image-size=64",
                                          f"--train={out}/cache64", f"--out={out}/reports/encoder.json"]),
        Part("language", 1.5, train("mllm.train_language", "mllm/recipes/tiny_language.yaml", 250,
                                    f"output_dir={out}/llm", f"corpus={corpus}", f"tokenizer={out}/tokenizer")),
        Part("assemble", 0.2, ["mllm.assemble", f"--encoder={autoencoder}", f"--llm={out}/llm",
                               f"--out={out}/assembled"]),
        Part("align", 1.0, train("mllm.train", "mllm/recipes/tiny_align.yaml", 120, f"output_dir={out}/align",
                                 f"init_from={out}/assembled", *questions)),
        Part("tune", 8.0, train("mllm.train", "mllm/recipes/tiny_tune.yaml", 900, f"output_dir={mllm}",
                                f"init_from={out}/align", *questions)),
        Part("generator", 26.0, train("generator.train", "generator/recipes/tiny.yaml", 1500,
                                      f"output_dir={out}/generator", f"data=[{out}/cache64]",
                                      f"autoencoder={autoencoder}")),
    ]
    for split in ("test_iid", "test_combo"):
        folder = data / "64" / split
        steps.append(Part(f"questions {split}", 0.8, [
            "mllm.evaluate", f"--model={mllm}", f"--data={folder}/questions.json", f"--images={folder}/images",
            f"--train={train_64}/questions.json", "--shuffle", f"--out={out}/reports/questions_{split}.json"]))
    steps.append(Part("drawings", 3.0, [
        "generator.evaluate", f"--model={out}/generator", "--count=200", "--split", "test_iid", "test_combo",
        f"--nearest={out}/cache64", f"--out={out}/reports/drawings.json"]))
    return steps


def run(out: Path, vae: Path, scale: float) -> None:
    """Runs what is not done yet, then writes the report."""
    if not (vae / "config.json").is_file():
        raise ValueError(f"There is no VAE at {vae}; train one with encoder/recipes/tiny_vae.yaml.")
    todo, folder = parts(out, vae, scale), out / "done"
    for name in ("done", "logs", "reports"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(todo, start=1):
        marker = folder / f"{number:02d}.json"
        if marker.is_file():
            continue
        left = sum(later.minutes * (scale if later.minutes > 1 else 1) for later in todo[number - 1 :])
        print(f"[{number}/{len(todo)}] {part.name}: about {part.minutes:.0f} min, {left:.0f} min to the end\n"
              f"    python -m {' '.join(part.command)}", flush=True)
        start = time.perf_counter()
        log = out / "logs" / f"{number:02d}.log"
        with open(log, "a", encoding="utf-8") as file:
            code = subprocess.run([sys.executable, "-m", *part.command], stdout=file, stderr=subprocess.STDOUT,
                                  env={**os.environ, "OMP_WAIT_POLICY": "passive"}).returncode
        if code != 0:
            tail = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise ValueError(f"The part '{part.name}' ended with code {code}: {' '.join(tail)} (log: {log}).")
        minutes = (time.perf_counter() - start) / 60
        marker.write_text(json.dumps({"name": part.name, "minutes": minutes}))
    print(f"report: {write_report(out)}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.tiny", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--vae", type=Path, default=VAE, help="folder of the frozen VAE")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every training")
    args = parser.parse_args(argv)
    run(args.out, args.vae, args.scale)


if __name__ == "__main__":
    run_cli(main)
