"""Kills a training again and again and shows that it ends as one that was never killed.

    python -m scripts.kills --kills 20
    python -m scripts.kills --kills 20 --processes 2

A small training runs through once, in one process and in two. Then each is started with the same command, killed
(SIGKILL, workers and all), and started again: every other time while it saves, else at a random moment; one that ends
before its kill is compared and begun anew. At the end the last checkpoint and the exported models must be the same, bit
by bit. What runs is `encoder.train` with two data workers in every process, micro-batches, noise, Muon and averages.
"""

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from scripts.small_training import Training, write_small_training
from training.cli import run_cli

EXPORTED = ("pretraining/model.safetensors", "autoencoder/model.safetensors")
IN_CHECKPOINT = ("model.safetensors", "ema.safetensors", "optimizer.pt")


def kill_somewhen(training: Training, saving: bool, seconds: float, rng: random.Random) -> str | None:
    """Kills a training within one of its next saves, or at a random moment of `seconds`; when; None: it had ended."""
    before = left = training.saving()  # half a checkpoint of the kill before, which the training will remove
    moment, to_pass = time.monotonic() + rng.uniform(0, seconds), rng.randrange(3)
    while training.running():
        now = training.saving()
        if now is None:
            left = None
        elif now != before:
            to_pass -= 1
        before = now
        if saving and to_pass < 0:
            time.sleep(rng.uniform(0, 0.02))
            break
        if not saving and time.monotonic() > moment:
            break
        time.sleep(0.003)
    else:
        return None
    training.kill()
    now = training.saving()
    return f"while saving {now}" if now and now != left else "while training"


def differing(one: Path, other: Path) -> list[str]:
    """The files of two ended trainings that are not the same, byte by byte."""
    last = max(one.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1])).name
    names = [*EXPORTED, *(f"{last}/{name}" for name in IN_CHECKPOINT)]
    return [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def run_kills(recipe: Path, folder: Path, kills: int, processes: int, seed: int) -> None:
    """See the module's text.

    Raises:
        ValueError: a killed training ends with other weights.
    """
    rng = random.Random(seed)
    whole, killed = (folder / f"{name}-{processes}" for name in ("whole", "killed"))
    start = time.monotonic()
    Training(recipe, whole, processes).finish()
    seconds = time.monotonic() - start
    print(f"{processes} process{'es' if processes > 1 else ''}, never killed: {seconds:.1f} s", flush=True)
    count = 0
    while True:
        training = Training(recipe, killed, processes)
        if count == kills:
            training.finish()
        elif where := kill_somewhen(training, count % 2 == 0, seconds, rng):
            count += 1
            print(f"kill {count}: {where}", flush=True)
            continue
        if odd := differing(whole, killed):
            raise ValueError(f"After {count} kills {odd[0]} in {killed} differs from the one of {whole}.")
        print(f"ended after {count} kills with the same bytes", flush=True)
        if count == kills:
            return
        shutil.rmtree(killed)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="how many of each training")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="of each training, over gloo if more than one"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    recipe = write_small_training(folder)
    for processes in args.processes:
        run_kills(recipe, folder, args.kills, processes, args.seed)
    shutil.rmtree(folder)  # kept where something differs


if __name__ == "__main__":
    run_cli(main)
