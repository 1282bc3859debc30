"""`make tiny`: every training of the family from scratch at 64 px, its evaluation, and a report.

    python -m scripts.tiny [--out runs/tiny] [--scale 1.0]

Each part is a command of this project, printed before it runs, with its log in OUT/logs. Killed and started again, it
goes on where it was. The VAE is the one that ships (demo/checkpoints/vae); nothing else is read from there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.tiny_report import write_report
from training.cli import run_cli

VAE = Path("demo/checkpoints/vae")


@dataclass(frozen=True)
class Part:
    """A command, and the minutes it took where the estimate was measured (2 cores of an AMD EPYC, AVX2).

    lane: 0 runs alone on both cores and first; 1 and 2 run beside each other then, a core each.
    """

    name: str
    minutes: float
    command: list[str]
    lane: int = 0


def parts(out: Path, vae: Path, scale: float) -> list[Part]:
    """Everything `make tiny` runs, in order. `scale` multiplies pictures and steps; tests run it small."""
    data = out / "data"

    def write(split: str, count: int, size: int, *more: str) -> list[str]:
        return ["training.shapes.write", f"--out={data}/{size}", f"--split={split}", f"--count={count}",
                f"--size={size}", *more]  # fmt: skip

    def some(count: int, least: int) -> int:
        return max(least, round(count * scale))

    def train(module: str, recipe: str, steps: int, *overrides: str) -> list[str]:
        return [module, recipe, f"trainer.max_steps={some(steps, 2)}", *overrides]

    train_64, corpus = data / "64" / "train", data / "64" / "train" / "corpus.txt"
    questions = [f"data={train_64}/questions.json", f"images={train_64}/images"]
    autoencoder, mllm = out / "encoder" / "autoencoder", out / "mllm"

    def latents(size: int) -> list[str]:
        return ["encoder.cache_latents", f"--shards={data}/{size}/train/shards", f"--vae={vae}",
                f"--image-size={size}", f"--out={out}/cache{size}"]  # fmt: skip

    def ask(split: str) -> list[str]:
        folder = data / "64" / split
        return ["mllm.evaluate", f"--model={mllm}", f"--data={folder}/questions.json", f"--images={folder}/images",
                f"--train={train_64}/questions.json", "--shuffle",
                f"--out={out}/reports/questions_{split}.json"]  # fmt: skip

    return [
        Part("data", 0.6, write("train", some(20000, 400), 64, f"--question-images={some(12000, 200)}",
                                f"--corpus={some(12000, 400)}")),
        Part("data 128 px", 0.1, write("train", some(512, 64), 128)),
        Part("data test_iid", 0.1, write("test_iid", some(500, 8), 64, f"--question-images={some(250, 40)}")),
        Part("data test_combo", 0.1, write("test_combo", some(500, 8), 64, f"--question-images={some(250, 40)}")),
        Part("tokenizer", 0.2, ["encoder.train_tokenizer", f"--corpus={corpus}", f"--out={out}/tokenizer"]),
        Part("latents 64 px", 1.1, latents(64)),
        Part("latents 128 px", 0.2, latents(128)),
        Part("encoder", 21.0, train("encoder.train", "encoder/recipes/tiny.yaml", 1300, f"output_dir={out}/encoder",
                                    f"cache={out}/cache64", f"vae={vae}", f"tokenizer={out}/tokenizer")),
        Part("encoder 128 px, a few steps", 0.7, [
            "encoder.train", "encoder/recipes/tiny_128.yaml", "trainer.max_steps=5", f"output_dir={out}/encoder128",
            f"cache={out}/cache128", f"vae={vae}", f"tokenizer={out}/tokenizer",
            f"init_from={out}/encoder/pretraining", "trainer.per_device_train_batch_size=32"], lane=1),
        Part("encoder, evaluation", 1.0, [
            "encoder.evaluate", f"--model={autoencoder}", "--image-size=64", f"--count={some(512, 16)}",
            f"--train={out}/cache64", f"--out={out}/reports/encoder.json"], lane=1),
        Part("language", 2.0, train("mllm.train_language", "mllm/recipes/tiny_language.yaml", 250,
                                    f"output_dir={out}/llm", f"corpus={corpus}", f"tokenizer={out}/tokenizer"), lane=1),
        Part("assemble", 0.2, ["mllm.assemble", f"--encoder={autoencoder}", f"--llm={out}/llm",
                               f"--out={out}/assembled"], lane=1),
        Part("align", 1.5, train("mllm.train", "mllm/recipes/tiny_align.yaml", 120, f"output_dir={out}/align",
                                 f"init_from={out}/assembled", *questions), lane=1),
        Part("tune", 14.0, train("mllm.train", "mllm/recipes/tiny_tune.yaml", 900, f"output_dir={mllm}",
                                 f"init_from={out}/align", *questions), lane=1),
        Part("questions test_iid", 0.8, ask("test_iid"), lane=1),
        Part("questions test_combo", 0.8, ask("test_combo"), lane=1),
        Part("generator", 45.0, train("generator.train", "generator/recipes/tiny.yaml", 2500,
                                      f"output_dir={out}/generator", f"data=[{out}/cache64]",
                                      f"autoencoder={autoencoder}"), lane=2),
        Part("drawings", 3.0, [
            "generator.evaluate", f"--model={out}/generator", f"--count={some(200, 2)}",
            "--split", "test_iid", "test_combo", "--categories", "single", "two_with_relation",
            f"--nearest={out}/cache64", f"--out={out}/reports/drawings.json"], lane=2),
        Part("blind, the baseline without pictures", 3.0, train(
            "mllm.train", "mllm/recipes/tiny_tune.yaml", 300, f"output_dir={out}/blind", f"init_from={out}/assembled",
            "blind=true", "cache_tokens=false", *questions), lane=1),
        Part("questions, blind", 0.5, [
            "mllm.evaluate", f"--model={out}/blind", f"--data={data}/64/test_iid/questions.json",
            f"--images={data}/64/test_iid/images", "--blind", f"--out={out}/reports/questions_blind.json"], lane=1),
    ]  # fmt: skip


def run_part(part: Part, number: int, out: Path, left: float) -> None:
    """Runs a part unless its marker says it is done; its output goes to a log of its own.

    Raises:
        ValueError: the command failed; the sentence holds its last line and names the log.
    """
    marker, log = out / "done" / f"{number:02d}.json", out / "logs" / f"{number:02d}.log"
    if marker.is_file():
        return
    print(f"[{number}] {part.name}: about {part.minutes:.1f} min, {left:.0f} min to the end\n"
          f"    python -m {' '.join(part.command)}", flush=True)  # fmt: skip
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    if part.lane:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    start = time.perf_counter()
    with open(log, "a", encoding="utf-8") as file:
        command = [sys.executable, "-m", *part.command]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code != 0:
        tail = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise ValueError(f"The part '{part.name}' ended with code {code}: {' '.join(tail)} (log: {log}).")
    minutes = (time.perf_counter() - start) / 60
    marker.write_text(json.dumps({"name": part.name, "minutes": minutes, "lane": part.lane}))


def run(out: Path, vae: Path, scale: float) -> None:
    """Runs what is not done yet, then writes the report."""
    if not (vae / "config.json").is_file():
        raise ValueError(f"There is no VAE at {vae}; train one with encoder/recipes/tiny_vae.yaml.")
    todo = list(enumerate(parts(out, vae, scale), start=1))
    for name in ("done", "logs", "reports"):
        (out / name).mkdir(parents=True, exist_ok=True)

    def run_lane(lane: int) -> None:
        for number, part in todo:
            if part.lane == lane:
                later = [other.minutes for at, other in todo if at >= number and other.lane == lane]
                beside = 0.0 if lane else max(sum(p.minutes for _, p in todo if p.lane == other) for other in (1, 2))
                run_part(part, number, out, (sum(later) + beside) * scale)

    run_lane(0)
    with ThreadPoolExecutor(2) as pool:
        for finished in [pool.submit(run_lane, lane) for lane in (1, 2)]:
            finished.result()
    print(f"report: {write_report(out)}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--vae", type=Path, default=VAE, help="folder of the frozen VAE")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies pictures and steps")
    args = parser.parse_args(argv)
    run(args.out, args.vae, args.scale)


if __name__ == "__main__":
    run_cli(main)
