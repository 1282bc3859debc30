"""A pre-training small enough for checks: all that `encoder.train` reads, made on the spot, and its processes."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from encoder.cache_latents import main as cache_latents
from encoder.pretraining import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.tokenizer import load_tokenizer, text_settings
from encoder.train import main as train
from encoder.train_tokenizer import train_tokenizer
from encoder.vae import tiny_vae
from training.checkpoints import MARKER
from training.shapes.write import write

SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
SIDE, PICTURES, WORDS = 32, 96, 330
# A training that has not ended after so many seconds hangs.
PATIENCE = 400

RECIPE = """
cache: {folder}/cache
vae: {folder}/vae
tokenizer: {folder}/tokenizer
init_from: {folder}/init
optimizer: muon
ema_half_life: 5
objective: {{pixel_loss_fraction: 0.5}}
trainer: {{max_steps: 12, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1.0e-3,
  save_steps: 2, logging_steps: 5, dataloader_num_workers: 2, use_cpu: true, disable_tqdm: true, seed: 0}}
"""


def write_small_training(folder: Path) -> Path:
    """Writes shards of `shapes`, an untrained VAE and encoder, tokenizer and latent cache; returns the recipe's path.

    The recipe has all that a resumed training must restore: workers, micro-batches, noise, a share of the pixels, Muon
    and averaged weights. Its output_dir is the caller's to give.
    """
    torch.manual_seed(0)
    write(folder / "data", "train", PICTURES, SIDE, corpus=200)
    train_tokenizer(folder / "data" / "train" / "corpus.txt", folder / "tokenizer", WORDS)
    tiny_vae().save_pretrained(folder / "vae")
    cache_latents(
        ["--shards", f"{folder}/data/train", "--vae", f"{folder}/vae", "--image-size", str(SIDE)]
        + ["--out", f"{folder}/cache"]
    )
    words = text_settings(load_tokenizer(folder / "tokenizer"))
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": SIDE, **SIZES},
        decoder=dict(SIZES),
        text={"projection_dim": SIZES["hidden_size"], **words, **SIZES},
    )
    OpenVision3ForPreTraining(config).save_pretrained(folder / "init")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder / "recipe.yaml"


class Training:
    """One start of `encoder.train`: its processes, forked from this one, which has imported everything already.

    Args:
        overrides: `key=value` beside the recipe's.
    """

    def __init__(self, recipe: Path, output: Path, processes: int, overrides: Sequence[str] = ()) -> None:
        self.output, self.log = output, output.with_suffix(".log")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sys.stdout.flush()
        argv = [str(recipe), f"output_dir={output}", *overrides]
        self.pids = [self._fork(argv, rank, processes, port) for rank in range(processes)]

    def _fork(self, argv: list[str], rank: int, processes: int, port: int) -> int:
        if pid := os.fork():
            os.setpgid(pid, pid)  # a group of its own, with its data workers, whichever of the two comes here first
            return pid
        os.setpgrp()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if processes > 1:  # what torchrun sets
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        code = 1
        try:
            torch.set_num_threads(1)  # threads do not survive a fork
            train(argv)
            code = 0
        except BaseException:  # noqa: BLE001  a fork must never return into its parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
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

    def finish(self) -> None:
        """Waits until the training has ended.

        Raises:
            ValueError: it failed, or hangs.
        """
        end = time.monotonic() + PATIENCE
        while self.running():
            if time.monotonic() > end:
                self.kill()
                raise ValueError(f"The training did not end within {PATIENCE} s (see {self.log}).")
            time.sleep(0.02)

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
