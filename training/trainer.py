"""The one training loop: `transformers.Trainer` with named losses, averaged weights, exact resume and samples."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainingArguments

from training.checkpoints import discard_incomplete, last_checkpoint, mark_complete
from training.ema import EMA
from training.plots import plot_losses
from training.recipes import Recipe

EMA_FILE = "ema.safetensors"
WEIGHTS_FILE = "model.safetensors"


class NonFiniteError(RuntimeError):
    """A loss or gradient is no longer a number; the message names step, term and sample keys."""


class Trainer(transformers.Trainer):
    """Trains an objective: an `nn.Module` whose `forward(**batch)` returns `loss` and `losses` (raw terms by name).

    A batch may hold `keys` (list of str), the names of its samples; they are not passed to the objective but are named
    when a loss is not finite. Checkpoints hold the trainable parameters and the averaged weights, nothing frozen.
    """

    def __init__(
        self, *args: Any, ema: EMA | None = None, keep: int | None = None, sampler: Sampler | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self.model_accepts_loss_kwargs = False
        self.ema = ema
        self.keep = keep
        self._terms: dict[str, Tensor] = {}
        self._term_count = 0
        self._keys: list[str] = []

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    # --- losses -------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        self._keys = inputs.pop("keys", [])
        outputs = model(**inputs)
        terms = {"total": outputs["loss"].detach(), **outputs["losses"]}
        bad = [name for name, value in terms.items() if not torch.isfinite(value).all()]
        if bad:
            raise NonFiniteError(
                f"Step {self.state.global_step + 1}: {', '.join(bad)} is not finite "
                f"(samples {', '.join(map(str, self._keys[:8])) or 'unnamed'})."
            )
        for name, value in outputs["losses"].items():
            self._terms[name] = self._terms.get(name, 0.0) + value.float()
        self._term_count += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteError(
                f"Step {self.state.global_step + 1}: the gradient is not finite "
                f"(samples {', '.join(map(str, self._keys[:8])) or 'unnamed'})."
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._terms and "loss" in logs:
            names = sorted(self._terms)
            means = torch.stack([self._terms[name] for name in names]) / self._term_count
            means = self.accelerator.reduce(means, "mean").tolist()
            logs.update({f"loss/{name}": value for name, value in zip(names, means, strict=True)})
            self._terms, self._term_count = {}, 0
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay on matrices only: no bias, gain, temperature or learned vector decays."""
        return [name for name, value in model.named_parameters() if value.ndim >= 2]

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict() if state_dict is None else state_dict
        save_file(
            {name: state[name].detach().contiguous() for name in self._trainable()},
            folder / WEIGHTS_FILE,
            metadata={"format": "pt"},
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / WEIGHTS_FILE)
        names = self._trainable()
        if set(state) != set(names):
            odd = sorted(set(state) ^ set(names))[0]
            raise ValueError(
                f"{resume_from_checkpoint} does not belong to this recipe: the parameter {odd!r} is on one "
                "side only; choose another output_dir or restore the recipe."
            )
        with torch.no_grad():
            parameters = dict((self.model if model is None else model).named_parameters())
            for name in names:
                parameters[name].copy_(state[name])
        self._load_ema(resume_from_checkpoint)

    def _load_ema(self, folder: str) -> None:
        if self.ema is not None:
            self.ema.load_state_dict(load_file(Path(folder) / EMA_FILE))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            if self.ema is not None:
                save_file(self.ema.state_dict(), folder / EMA_FILE)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder, self.keep)

    def _trainable(self) -> list[str]:
        return [name for name, value in self.model.named_parameters() if value.requires_grad]


class _Epoch(TrainerCallback):
    """Tells the data set which epoch it is (accelerate does so in some cases only, not behind nested samplers)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch + 1e-6))


class _EMACallback(TrainerCallback):
    def __init__(self, ema: EMA) -> None:
        self.ema = ema

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.ema.update()


class _Pictures(TrainerCallback):
    """Writes `samples/step-N.png` and `loss.png` while training goes on."""

    def __init__(self, trainer_ema: EMA | None, sample: Callable[[], Image.Image] | None, every: int) -> None:
        self.ema, self.sample, self.every = trainer_ema, sample, every

    def on_step_end(
        self, args: TrainingArguments, state: Any, control: Any, model: nn.Module = None, **kwargs: Any
    ) -> None:
        last = state.global_step == state.max_steps
        if state.is_world_process_zero and (last or (self.every and state.global_step % self.every == 0)):
            folder = Path(args.output_dir)
            plot_losses(state.log_history, folder / "loss.png")
            if self.sample is not None:
                (folder / "samples").mkdir(exist_ok=True)
                random = torch.random.get_rng_state()
                model.eval()
                if self.ema is None:
                    picture = self.sample()
                else:
                    with self.ema.applied():
                        picture = self.sample()
                model.train()
                torch.random.set_rng_state(random)
                picture.save(folder / "samples" / f"step-{state.global_step:06d}.png")


def run_training(
    objective: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    export: Callable[[Path], None],
    sample_pictures: Callable[[], Image.Image] | None = None,
    sampler: Callable[[int], Sampler] | None = None,
) -> None:
    """Trains `objective` on a map-style `dataset` by `recipe`; resumes by itself; exports into `output_dir`.

    Args:
        objective: `forward(**batch)` -> mapping with `loss` (scalar) and `losses` (raw terms, detached).
        collate: list of samples -> batch; a key `keys` names the samples.
        export: called as `export(output_dir)` in the first process at the end, averaged weights in place.
        sample_pictures: returns a picture grid for `samples/`; called without gradients in eval mode.
        sampler: world_size -> the order of samples, for all processes together; None: shuffled anew every epoch.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
        ValueError: a prefix in `trainable` matches no parameter, or output_dir holds another recipe's checkpoint.
    """
    output_dir = Path(recipe.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    set_trainable(objective, recipe.trainable)
    ema = EMA(objective, recipe.ema_half_life) if recipe.ema_half_life else None
    arguments = training_arguments(recipe)
    if recipe.dry_run:
        print(dry_run(objective, dataset, arguments, collate))
        return
    callbacks: list[TrainerCallback] = [_Epoch(dataset)]
    if ema is not None:
        callbacks.append(_EMACallback(ema))
    sample = None if sample_pictures is None else torch.no_grad()(sample_pictures)
    callbacks.append(_Pictures(ema, sample, recipe.sample_steps))
    keep = arguments.save_total_limit
    arguments.save_total_limit = None
    trainer = Trainer(
        model=objective,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=callbacks,
        ema=ema,
        keep=keep,
        sampler=None if sampler is None else sampler(arguments.world_size),
    )
    if trainer.is_world_process_zero():
        discard_incomplete(output_dir)
    trainer.accelerator.wait_for_everyone()
    last = last_checkpoint(output_dir)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.is_world_process_zero():
        history = {"log_history": trainer.state.log_history}
        (output_dir / "history.json").write_text(json.dumps(history, indent=1))
        if ema is None:
            export(output_dir)
        else:
            with ema.applied():
                export(output_dir)
    trainer.accelerator.wait_for_everyone()


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's `trainer` block as TrainingArguments, with what every run here needs set."""
    fixed = {"output_dir": recipe.output_dir, "remove_unused_columns": False, "logging_nan_inf_filter": False}
    for key in fixed.keys() & recipe.trainer.keys():
        raise ValueError(f"trainer.{key} is set by the trainer itself; remove it from the recipe.")
    settings = {
        "report_to": "none",
        "logging_steps": 10,
        "save_strategy": "steps",
        "save_steps": 200,
        "save_total_limit": 1,
        **recipe.trainer,
        **fixed,
    }
    if settings.get("deepspeed") and "RANK" not in os.environ:
        # DeepSpeed started without a launcher looks for MPI; one process needs none.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    try:
        return TrainingArguments(**settings)
    except TypeError as error:
        raise ValueError(f"The trainer block of the recipe is not accepted: {error}.") from error


def set_trainable(objective: nn.Module, prefixes: list[str]) -> None:
    """Freezes everything but the parameters that start with one of `prefixes`; an empty list changes nothing."""
    if not prefixes:
        return
    names = [name for name, _ in objective.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            groups = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(f"trainable: no parameter starts with {prefix!r}; the modules are {groups}.")
    for name, value in objective.named_parameters():
        value.requires_grad_(name.startswith(tuple(prefixes)))


def dry_run(
    objective: nn.Module, dataset: Dataset, arguments: TrainingArguments, collate: Callable[[list[Any]], dict[str, Any]]
) -> str:
    """Trainable parameters, the first batch's shapes and an estimate from one measured step, as text."""
    batch = collate([dataset[index] for index in range(min(arguments.per_device_train_batch_size, len(dataset)))])
    keys = batch.pop("keys", [])
    learning = sum(value.numel() for value in objective.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in objective.parameters() if not value.requires_grad)
    start = time.perf_counter()
    objective(**batch)["loss"].backward()
    seconds = time.perf_counter() - start
    lines = [f"parameters: {learning:,} learn, {frozen:,} frozen", f"samples: {len(dataset):,}, first {keys[:4]}"]
    lines += [
        f"batch {name}: {list(value.shape)} {value.dtype}" for name, value in batch.items() if isinstance(value, Tensor)
    ]
    lines.append(f"one forward and backward on the CPU: {seconds:.2f} s")
    if arguments.max_steps > 0:
        lines.append(f"estimate for {arguments.max_steps} steps: {seconds * arguments.max_steps / 60:.1f} minutes")
    return "\n".join(lines)
