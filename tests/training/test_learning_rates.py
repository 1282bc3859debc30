"""Parts with a learning rate of their own."""

import pytest
import torch
from torch import nn

from training.learning_rates import set_learning_rates
from training.recipes import Recipe
from training.trainer import Trainer, muon_learning_rate, training_arguments


def _model():
    return nn.ModuleDict({"connector": nn.Linear(3, 3), "llm": nn.Linear(3, 3), "head": nn.Linear(3, 3, bias=False)})


def test_every_parameter_has_its_rate_and_keeps_its_weight_decay(tmp_path):
    model = _model()
    recipe = Recipe(output_dir=str(tmp_path), trainer={"use_cpu": True, "learning_rate": 0.1, "weight_decay": 0.5})
    rates = {"connector": 0.01, "head": 0.02}
    trainer = Trainer(model=model, args=training_arguments(recipe), learning_rates=rates)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for name, value in model.named_parameters()
        if any(value is other for other in group["params"])
    }
    assert found == {
        "connector.weight": (0.01, 0.5),
        "connector.bias": (0.01, 0.0),
        "llm.weight": (0.1, 0.5),
        "llm.bias": (0.1, 0.0),
        "head.weight": (0.02, 0.5),
    }
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 0.0
    trainer.optimizer.step()  # AdamW's first step is the rate
    for name, value in model.named_parameters():
        assert torch.allclose(before[name] - value, torch.full_like(value, found[name][0]), atol=1e-6), name


def test_a_prefix_without_parameters_and_muon_are_refused(tmp_path):
    model = _model()
    model["head"].requires_grad_(False)
    optimizer = torch.optim.AdamW(value for value in model.parameters() if value.requires_grad)
    with pytest.raises(ValueError, match="no parameter that learns starts with 'head'"):
        set_learning_rates(optimizer, model, {"head": 0.1})
    recipe = Recipe(output_dir=str(tmp_path), optimizer="muon", learning_rates={"llm": 0.1})
    with pytest.raises(ValueError, match="use optimizer=adamw"):
        muon_learning_rate(recipe, training_arguments(recipe))
