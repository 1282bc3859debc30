"""What the loop refuses, and in which order it sets a training up."""

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

import training.trainer as trainer_module
from training.arguments import training_arguments
from training.checkpoints import check_same_run, write_run
from training.recipes import Recipe
from training.trainer import run_training


class Objective(nn.Module):
    """Remembers where it was moved."""

    def __init__(self):
        super().__init__()
        self.layer, self.moved_to = nn.Linear(2, 2), None

    def to(self, device):
        self.moved_to = device
        return self


def _run(objective, recipe):
    run_training(objective, [], recipe, collate=dict, export=print)


def test_averages_start_where_the_parameters_will_be(tmp_path, monkeypatch):
    def stop(objective, half_life):
        raise InterruptedError(f"averages of {half_life} on {objective.moved_to}")

    monkeypatch.setattr(trainer_module, "EMA", stop)
    recipe = Recipe(output_dir=str(tmp_path), ema_half_life=3.0, trainer={"use_cpu": True})
    with pytest.raises(InterruptedError, match="averages of 3.0 on cpu"):
        _run(Objective(), recipe)


@pytest.mark.parametrize("launcher", [False, True], ids=["recipe", "environment"])
def test_averaged_weights_under_fsdp_are_refused(tmp_path, monkeypatch, launcher):
    arguments = trainer_module.training_arguments(Recipe(output_dir=str(tmp_path)))
    monkeypatch.setattr(trainer_module, "training_arguments", lambda recipe: arguments)
    if launcher:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        arguments.fsdp = "full_shard"
    with pytest.raises(ValueError, match="which ZeRO-3 and FSDP split: use ZeRO-2, or ema_half_life=0"):
        _run(Objective(), Recipe(output_dir=str(tmp_path), ema_half_life=3.0))


def test_a_dry_run_refuses_an_unknown_optimizer(tmp_path):
    with pytest.raises(ValueError, match="optimizer is 'sgd'; choose one of adamw, muon"):
        _run(Objective(), Recipe(output_dir=str(tmp_path), optimizer="sgd", dry_run=True))


class Refusing(nn.Module):
    """Takes no batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        raise ValueError(f"There are {len(x)} rows.")


def test_what_an_objective_refuses_is_told_with_the_samples(tmp_path):
    recipe = Recipe(
        output_dir=str(tmp_path),
        trainer={"use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 2, "disable_tqdm": True},
    )

    def collate(keys):
        return {"x": torch.zeros(len(keys), 2), "keys": keys}

    with pytest.raises(ValueError, match=r"There are 2 rows\. \(samples (a, b|b, a)\)$"):
        run_training(Refusing(), ["a", "b"], recipe, collate=collate, export=print)


def test_several_gpus_for_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 3)
    with pytest.raises(ValueError, match="sees 3 GPUs, and DataParallel.*torchrun --nproc-per-node 3"):
        _run(Objective(), Recipe(output_dir=str(tmp_path)))


def test_a_training_is_noted_as_started_only_when_its_recipe_is_accepted(tmp_path, monkeypatch):
    started = []

    def run(**keys):
        recipe = Recipe(output_dir=str(tmp_path), **keys)
        run_training(Objective(), [], recipe, collate=dict, export=print, start=lambda: started.append(keys))

    for keys in ({"trainable": ["nowhere"]}, {"optimizer": "sgd"}, {"trainer": {"max_stepz": 3}}):
        with pytest.raises(ValueError):
            run(**keys)
    assert not started
    monkeypatch.setattr(trainer_module, "Trainer", lambda **arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(trainer={"use_cpu": True})
    assert len(started) == 1


def test_a_checkpoint_of_other_batches_or_rates_is_refused_by_name(tmp_path):
    def arguments(**trainer):
        return training_arguments(Recipe(output_dir=str(tmp_path), trainer={"use_cpu": True, **trainer}))

    write_run(tmp_path, arguments(learning_rate=1e-3), muon_learning_rate=4e-3)
    check_same_run(tmp_path, arguments(learning_rate=1e-3, max_steps=7), muon_learning_rate=4e-3)
    for then, keys, muon in (
        ("trainer.learning_rate = 0.001 and this run has 0.002", {"learning_rate": 2e-3}, 4e-3),
        ("muon_learning_rate = 0.004 and this run has 0.005", {"learning_rate": 1e-3}, 5e-3),
        ("optimizer = muon and this run has adamw", {"learning_rate": 1e-3}, None),
        ("gradient_accumulation_steps = 1 and", {"learning_rate": 1e-3, "gradient_accumulation_steps": 2}, 4e-3),
    ):
        with pytest.raises(ValueError, match=then):
            check_same_run(tmp_path, arguments(**keys), muon)
