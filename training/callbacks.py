"""What happens around the steps of a training: epochs told to the data, averaged weights, plots and sample pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from training.ema import EMA
from training.plots import plot_losses


class EpochCallback(TrainerCallback):
    """Tells the data set and its sampler which epoch it is.

    accelerate tells the data set in some cases only, and no sampler that lies as deep as in a training of several
    processes that goes on within an epoch: that one would repeat the order of the first.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        told = [self.dataset, getattr(train_dataloader, "batch_sampler", None)]
        while told:
            part = told.pop()
            if hasattr(part, "set_epoch"):
                part.set_epoch(int(state.epoch + 1e-6))
            told += [inner for name in ("batch_sampler", "sampler") if (inner := getattr(part, name, None)) is not None]


class SeedCallback(TrainerCallback):
    """Gives every process random numbers of its own: transformers seeds all alike, and their noise would be the same.

    The first keeps the run's seed. A resumed training reads each process's own state afterwards.
    """

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index:
            torch.manual_seed(args.seed + args.process_index)


class EMACallback(TrainerCallback):
    """Updates the averaged weights after every step."""

    def __init__(self, ema: EMA) -> None:
        self.ema = ema

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.ema.update()


class PicturesCallback(TrainerCallback):
    """Writes `samples/step-N.png` and `loss.png` while training goes on."""

    def __init__(self, ema: EMA | None, sample: Callable[[], Image.Image] | None, every: int) -> None:
        self.ema, self.sample, self.every = ema, sample, every

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: Any, model: nn.Module = None, **kwargs: Any
    ) -> None:
        last = state.global_step == state.max_steps
        if state.is_world_process_zero and (last or (self.every and state.global_step % self.every == 0)):
            folder = Path(args.output_dir)
            plot_losses(state.log_history, folder / "loss.png")
            if self.sample is not None:
                (folder / "samples").mkdir(exist_ok=True)
                model.eval()
                with torch.random.fork_rng([args.device] if args.device.type == "cuda" else []):
                    if self.ema is None:
                        picture = self.sample()
                    else:
                        with self.ema.applied():
                            picture = self.sample()
                model.train()
                picture.save(folder / "samples" / f"step-{state.global_step:06d}.png")
