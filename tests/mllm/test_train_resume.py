"""Killed while training and while saving, mllm.train ends with the weights of a training that was not killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
RECIPES = {
    "align": ["trainable=[connector]"],
    "tune": ["trainable=[connector,llm,head]", "group_by_modality_length=true", "trainer.weight_decay=0.1"],
    "lora": ["lora={r: 4, lora_alpha: 8, lora_dropout: 0.05}", "learning_rates={connector: 0.001}"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_killed_while_training_and_while_saving(family, arguments, tmp_path, name):
    weights = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [*RECIPES[name], "trainer.max_steps=10", "trainer.save_steps=2", "trainer.logging_steps=1"]
    command = [sys.executable, str(Path(__file__).parent / "killed.py"), str(whole), str(killed)]
    done = subprocess.run([*command, *arguments("unused", *options)], capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = load_file(whole / weights), load_file(killed / weights)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    losses = [
        {row["step"]: row["loss"] for row in json.loads((folder / "history.json").read_text())["log_history"][:-1]}
        for folder in (whole, killed)
    ]
    assert losses[0] == losses[1] and list(losses[0]) == list(range(1, 11))
    saved = load_file(killed / "checkpoint-10" / "model.safetensors")
    if name == "tune":
        before = load_file(family / "mllm" / "model.safetensors")
        tower = [key for key in before if "vision_tower" in key]
        assert tower and all(torch.equal(before[key], first[key]) for key in tower)
    else:  # neither the frozen LLM nor the tower
        assert all(key.startswith("connector.") or "lora_" in key for key in saved)
