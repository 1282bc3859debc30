"""What the loop refuses, and in which order it sets a training up."""

import pytest
from torch import nn

import training.trainer as trainer_module
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


def test_averaged_weights_under_fsdp_are_refused(tmp_path, monkeypatch):
    arguments = trainer_module.training_arguments(Recipe(output_dir=str(tmp_path)))
    arguments.fsdp = "full_shard"
    monkeypatch.setattr(trainer_module, "training_arguments", lambda recipe: arguments)
    with pytest.raises(ValueError, match="which ZeRO-3 and FSDP split: use ZeRO-2, or ema_half_life=0"):
        _run(Objective(), Recipe(output_dir=str(tmp_path), ema_half_life=3.0))


def test_a_dry_run_refuses_an_unknown_optimizer(tmp_path):
    with pytest.raises(ValueError, match="optimizer is 'sgd'; choose one of adamw, muon"):
        _run(Objective(), Recipe(output_dir=str(tmp_path), optimizer="sgd", dry_run=True))
