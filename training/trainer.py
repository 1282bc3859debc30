"""The one training loop: `transformers.Trainer` with named losses, averaged weights, exact resume and samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback, TrainerState
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME

from training.arguments import muon_learning_rate, training_arguments, uses_deepspeed, uses_fsdp
from training.callbacks import EMACallback, EpochCallback, PicturesCallback, SeedCallback
from training.checkpoints import check_same_run, discard_incomplete, last_checkpoint, mark_complete, write_run
from training.dry_run import dry_run
from training.ema import EMA
from training.learning_rates import set_learning_rates
from training.modules import enable_checkpointing, kernel_names, learn_in_float32, set_trainable
from training.muon import make_muon
from training.recipes import Recipe
from training.streaming import ShuffledStream, stream_loader
from training.zero import copy_into, gather_in_first_process, load_without_frozen, save_without_frozen

EMA_FILE = "ema.safetensors"
WEIGHTS_FILE = "model.safetensors"


class NonFiniteError(RuntimeError):
    """A loss or gradient is no longer a number; the message names step, term and sample keys."""


class Trainer(transformers.Trainer):
    """Trains an objective: an `nn.Module` whose `forward(**batch)` returns `loss` and `losses` (raw terms by name).

    A batch may hold `keys` (list of str), the names of its samples; they are not passed to the objective but are named
    when it raises a ValueError and when a loss is not finite. Checkpoints hold the trainable parameters and the
    averaged weights, nothing frozen.
    """

    def __init__(
        self,
        *args: Any,
        ema: EMA | None = None,
        keep: int | None = None,
        sampler: Sampler | None = None,
        muon_learning_rate: float | None = None,
        learning_rates: dict[str, float] | None = None,
        share_step: Callable[[nn.Module, list[dict]], list[dict]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.learning_rates = learning_rates or {}
        self.share_step = share_step
        self.sampler = sampler
        self.muon_learning_rate = muon_learning_rate
        self.model_accepts_loss_kwargs = False
        self.ema = ema
        self.keep = keep
        if self.is_deepspeed_enabled:
            load_without_frozen(self.model)
        self._terms: dict[str, tuple[Tensor, int]] = {}  # sum and count since the last log line
        self._keys: list[str] = []

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def get_train_dataloader(self) -> DataLoader:
        """A stream shares itself among processes: accelerate would let the first read it and deal its batches out."""
        if not isinstance(self.train_dataset, ShuffledStream):
            return super().get_train_dataloader()
        return stream_loader(self.train_dataset, self.args, self.data_collator)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one step; a loss that is no mean over them sees them together first."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.share_step is not None and len(batches) > 1:
            batches = self.share_step(self.model_wrapped, [self._prepare_inputs(batch) for batch in batches])
        return batches, count

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device; what the objective's `exact_inputs` names is not cast to the dtype of DeepSpeed's weights."""
        names = [name for name in getattr(self.model, "exact_inputs", ()) if name in inputs]
        exact = {name: inputs[name].to(self.args.device) for name in names}
        return {**super()._prepare_inputs(inputs), **exact}

    # --- losses -------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        self._keys = inputs.pop("keys", [])
        if "progress" in inputs:
            self.train_dataset.advance(inputs.pop("progress"))
        try:
            outputs = model(**inputs)
        except ValueError as error:
            raise ValueError(f"{error} (samples {', '.join(map(str, self._keys)) or 'unnamed'})") from error
        terms = {"total": outputs["loss"].detach(), **outputs["losses"]}
        if not torch.stack([value.float() for value in terms.values()]).isfinite().all():  # one wait for the device
            bad = [name for name, value in terms.items() if not torch.isfinite(value)]
            raise NonFiniteError(
                f"Step {self.state.global_step + 1}: {', '.join(bad)} is not finite "
                f"(samples {', '.join(map(str, self._keys[:8])) or 'unnamed'})."
            )
        for name, value in outputs["losses"].items():
            total, count = self._terms.get(name, (0.0, 0))
            self._terms[name] = (total + value.float(), count + 1)
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
            means = torch.stack([total / count for total, count in map(self._terms.get, names)])
            means = self.accelerator.reduce(means, "mean").tolist()
            logs.update({f"loss/{name}": value for name, value in zip(names, means, strict=True)})
            self._terms = {}
            if getattr(self.train_dataset, "skipped", 0):
                logs["skipped_rows"] = self.train_dataset.skipped
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return kernel_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW as transformers makes it; with `muon_learning_rate`, Muon and AdamW in one."""
        module = self.model if model is None else model
        if self.optimizer is None and self.muon_learning_rate is None:
            set_learning_rates(super().create_optimizer(model), module, self.learning_rates)
        if self.optimizer is None:
            self.optimizer = make_muon(
                module,
                decaying=self.get_decay_parameter_names(module),
                learning_rate=self.args.learning_rate,
                muon_learning_rate=self.muon_learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
            )
        return self.optimizer

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

    def load_checkpoint_parts(self, folder: Path) -> None:
        """Checks that a checkpoint is this recipe's, and reads what neither transformers nor DeepSpeed would.

        Raises:
            ValueError: it was written with other trainable parameters, or the run is another (see check_same_run).
        """
        check_same_run(folder, self.args, self.muon_learning_rate)
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            odd = sorted(set(file.keys()) ^ set(self._trainable()))
        if odd:
            raise ValueError(
                f"{folder} does not belong to this recipe: the parameter {odd[0]!r} is on one side only; "
                "choose another output_dir or restore the recipe."
            )
        if isinstance(self.train_dataset, ShuffledStream):
            self.train_dataset.load(folder)
        if self.ema is not None:
            self.ema.load_state_dict(load_file(folder / EMA_FILE))

    def load_finished(self, folder: Path) -> bool:
        """Reads weights and state of a checkpoint with no step left to train; False, and nothing read, if one is left.

        transformers itself would begin the last epoch again and train a step beyond max_steps.
        """
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        if not 0 < self.args.max_steps <= state.global_step:
            return False
        self.state = state
        self._load_from_checkpoint(str(folder))
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        parameters = dict((self.model if model is None else model).named_parameters())
        for name, value in load_file(Path(resume_from_checkpoint) / WEIGHTS_FILE).items():
            copy_into(parameters[name], value)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.is_deepspeed_enabled:
            save_without_frozen(self.model_wrapped)
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            write_run(folder, self.args, self.muon_learning_rate)
            if self.ema is not None:
                save_file(self.ema.state_dict(), folder / EMA_FILE)
        if isinstance(self.train_dataset, ShuffledStream):
            self.train_dataset.save(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder, self.keep)

    def _trainable(self) -> list[str]:
        return [name for name, value in self.model.named_parameters() if value.requires_grad]


def run_training(
    objective: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    export: Callable[[Path], None],
    sample_pictures: Callable[[], Image.Image] | None = None,
    sampler: Callable[[int], Sampler] | None = None,
    share_step: Callable[[nn.Module, list[dict]], list[dict]] | None = None,
    start: Callable[[], None] | None = None,
) -> None:
    """Trains `objective` on `dataset` by `recipe`; resumes by itself; exports into `output_dir`.

    Args:
        objective: `forward(**batch)` -> mapping with `loss` (scalar) and `losses` (raw terms, detached).
        dataset: map-style, or a ShuffledStream.
        collate: list of samples -> batch; a key `keys` names the samples.
        export: called as `export(output_dir)` in the first process at the end, averaged weights in place.
        sample_pictures: returns a picture grid for `samples/`; called without gradients in eval mode.
        sampler: world_size -> the order of samples, for all processes together; None: shuffled anew every epoch.
        share_step: wrapped objective, the batches of one step -> these batches with what each must know of the others;
            called where gradient_accumulation_steps is more than 1 and the loss no mean over micro-batches.
        start: called once the recipe is accepted, before anything is trained; not in a dry run.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
        ValueError: a prefix in `trainable` matches no parameter, output_dir holds another recipe's checkpoint, or
            averaged weights are asked for under ZeRO-3 or FSDP, where no process sees whole parameters.
    """
    output_dir = Path(recipe.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    set_trainable(objective, recipe.trainable)
    arguments = training_arguments(recipe)
    if not uses_deepspeed(arguments):  # which keeps float32 copies of what learns
        learn_in_float32(objective)
    muon_rate = muon_learning_rate(recipe, arguments)
    if recipe.ema_half_life and (uses_fsdp(arguments) or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "ema_half_life needs whole parameters, which ZeRO-3 and FSDP split: use ZeRO-2, or ema_half_life=0."
        )
    if arguments.activation_checkpointing:
        enable_checkpointing(objective, arguments.activation_checkpointing_kwargs)
        # done: the Trainer would ask it of the objective, a plain module
        arguments.activation_checkpointing = arguments.gradient_checkpointing = False
    if isinstance(dataset, ShuffledStream):
        dataset.share(arguments)
    if recipe.dry_run:
        print(dry_run(objective, dataset, arguments, collate))
        return
    if start is not None:
        start()
    objective.to(arguments.device)  # before EMA, whose averages lie where the parameters are when it is made
    ema = EMA(objective, recipe.ema_half_life) if recipe.ema_half_life else None
    callbacks: list[TrainerCallback] = [EpochCallback(dataset), SeedCallback()]
    if ema is not None:
        callbacks.append(EMACallback(ema))
    sample = None if sample_pictures is None else torch.no_grad()(sample_pictures)
    callbacks.append(PicturesCallback(ema, sample, recipe.sample_steps))
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
        muon_learning_rate=muon_rate,
        learning_rates=recipe.learning_rates,
        share_step=share_step,
    )
    if trainer.is_world_process_zero():
        discard_incomplete(output_dir)
    trainer.accelerator.wait_for_everyone()
    last = last_checkpoint(output_dir)
    if last is not None:
        trainer.load_checkpoint_parts(last)
    if last is None or not trainer.load_finished(last):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    gather_in_first_process(objective, trainer.is_world_process_zero())
    if trainer.is_world_process_zero():
        history = {"log_history": trainer.state.log_history}
        (output_dir / "history.json").write_text(json.dumps(history, indent=1))
        if ema is None:
            export(output_dir)
        else:
            with ema.applied():
                export(output_dir)
    trainer.accelerator.wait_for_everyone()
