"""Kills a training again and again and shows that it ends as one that was never killed.

    python -m scripts.kills --kills 20
    python -m scripts.kills --kills 20 --processes 2

A small training runs through once. Then it is started with the same command, killed (SIGKILL, workers and all), and
started again: every other time while it saves, else at a random moment; one that ends before its kill is compared and
begun anew. At the end the last checkpoint and the exported models must be the same, bit by bit. What runs is
`encoder.train` with two data workers in every process, micro-batches, noise, Muon and averaged weights.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

from encoder.train import main as train
from scripts.small_training import write_small_training
from training.checkpoints import MARKER
from training.cli import run_cli

EXPORTED = ("pretraining/model.safetensors", "autoencoder/model.safetensors")
IN_CHECKPOINT = ("model.safetensors", "ema.safetensors", "optimizer.pt")
# A training that is neither killed nor done after so many seconds hangs.
PATIENCE = 240


class Training:
    """One start of the recipe: its processes, forked from this one, which has imported everything already."""

    def __init__(self, recipe: Path, output: Path, processes: int) -> None:
        self.output, self.log = output, output.with_suffix(".log")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sys.stdout.flush()
        self.pids = [self._fork(recipe, rank, processes, port) for rank in range(processes)]

    def _fork(self, recipe: Path, rank: int, processes: int, port: int) -> int:
        if pid := os.fork():
            return pid
        os.setsid()  # a group of its own, with its data workers
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if processes > 1:  # what torchrun sets
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        code = 1
        try:
            train([str(recipe), f"output_dir={self.output}"])
            code = 0
        except BaseException as error:  # noqa: BLE001  a fork must never return into its parent's code
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def running(self) -> bool:
        """False once all processes have ended well.

        Raises:
            ValueError: one has failed by itself.
        """
        for pid in list(self.pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.pids.remove(pid)
                if status:
                    self.kill()
                    last = self.log.read_text().strip().splitlines()[-1:]
                    raise ValueError(f"The training failed without being killed: {' '.join(last)} (see {self.log}).")
        return bool(self.pids)

    def kill(self) -> None:
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids = []

    def saving(self) -> str | None:
        """The name of a checkpoint that is being written."""
        for folder in self.output.glob("checkpoint-*"):
            if not (folder / MARKER).exists():
                return folder.name
        return None


def finish(training: Training) -> None:
    """Waits until a training has ended.

    Raises:
        ValueError: it failed, or hangs.
    """
    end = time.monotonic() + PATIENCE
    while training.running():
        if time.monotonic() > end:
            training.kill()
            raise ValueError(f"The training did not end within {PATIENCE} s (see {training.log}).")
        time.sleep(0.02)


def kill_somewhen(training: Training, saving: bool, seconds: float, rng: random.Random) -> str | None:
    """Kills a training while it saves, or at a random moment within `seconds`; where, in words; None: it had ended."""
    stale = training.saving()  # left by the kill before; the training will remove it
    moment = time.monotonic() + rng.uniform(0, seconds)
    chance = rng.random()
    while training.running():
        now = training.saving()
        stale = stale if now == stale else None
        if saving and now and now != stale and rng.random() < max(chance, 0.05):
            time.sleep(rng.uniform(0, 0.02))
            now = training.saving()
            training.kill()
            return f"while saving {now}" if now else "after saving"
        if not saving and time.monotonic() > moment:
            training.kill()
            return "while training" if now is None or now == stale else f"while saving {now}"
        time.sleep(0.002)
    return None


def differing(one: Path, other: Path) -> list[str]:
    """The files of two ended trainings that are not the same, byte by byte."""
    last = max(one.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1])).name
    names = [*EXPORTED, *(f"{last}/{name}" for name in IN_CHECKPOINT)]
    return [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def run_kills(folder: Path, kills: int, processes: int, seed: int) -> None:
    """See the module's text.

    Raises:
        ValueError: a killed training ends with other weights.
    """
    rng, recipe = random.Random(seed), write_small_training(folder)
    whole, killed = folder / "whole", folder / "killed"
    start = time.monotonic()
    finish(Training(recipe, whole, processes))
    seconds = time.monotonic() - start
    print(f"never killed: {seconds:.1f} s, {processes} process{'es' if processes > 1 else ''}", flush=True)
    count = 0
    while True:
        training = Training(recipe, killed, processes)
        if count == kills:
            finish(training)
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
    parser.add_argument("--kills", type=int, default=20, help="how many")
    parser.add_argument("--processes", type=int, default=1, help="of the training, over gloo if more than one")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads do not survive a fork
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    run_kills(folder, args.kills, args.processes, args.seed)
    shutil.rmtree(folder)  # kept where something differs


if __name__ == "__main__":
    run_cli(main)
