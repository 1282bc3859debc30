"""The real encoder.train in processes of its own: killed, in two processes, in micro-batches, under ZeRO-2."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.kills import EXPORTED, IN_CHECKPOINT, differing, run_kills
from scripts.small_training import Training, write_small_training

ROOT = Path(__file__).parent.parent.parent
# Nothing random but the order of samples, and an optimizer whose steps are as close to each other as the gradients.
PLAIN = ["objective.noise_tau=0.0", "objective.pixel_loss_fraction=1.0", "optimizer=adamw", "trainer.adam_epsilon=0.01"]
PLAIN += ["trainer.learning_rate=0.01"]
SHORT = ["trainer.max_steps=3", "trainer.save_steps=10", "trainer.dataloader_num_workers=0"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_small_training(tmp_path_factory.mktemp("small"))


def weights(recipe, output, processes, *overrides):
    Training(recipe, output, processes, [*PLAIN, *SHORT, *overrides]).finish()
    return load_file(output / "pretraining" / "model.safetensors")


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_while_saving_and_while_training(recipe, tmp_path, capsys, processes):
    run_kills(recipe, tmp_path, kills=2, processes=processes, seed=0)
    said = capsys.readouterr().out
    assert "kill 1: while saving checkpoint-" in said and "kill 2: while" in said
    assert "ended after 2 kills with the same bytes" in said


def test_other_bytes_are_found(tmp_path):
    for name in ("one", "other"):
        for file in (*EXPORTED, *(f"checkpoint-{step}/{part}" for step in (2, 10) for part in IN_CHECKPOINT)):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"same")
    (tmp_path / "other" / "checkpoint-2" / "optimizer.pt").write_bytes(b"an older one does not count")
    assert differing(tmp_path / "one", tmp_path / "other") == []
    (tmp_path / "other" / "checkpoint-10" / "optimizer.pt").write_bytes(b"changed")
    assert differing(tmp_path / "one", tmp_path / "other") == ["checkpoint-10/optimizer.pt"]


def test_processes_and_micro_batches_learn_what_the_undivided_batch_does(recipe, tmp_path):
    whole = ["trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1"]
    expected = weights(recipe, tmp_path / "whole", 1, *whole)
    parts = ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"]
    divided = weights(recipe, tmp_path / "divided", 2, *parts)
    zero2 = f"trainer.deepspeed={ROOT / 'training' / 'deepspeed' / 'zero2.json'}"
    sharded = weights(recipe, tmp_path / "sharded", 2, *parts, zero2, "trainer.activation_checkpointing=true")
    start = load_file(recipe.parent / "init" / "model.safetensors")
    for name, value in expected.items():
        for other in (divided, sharded):
            torch.testing.assert_close(other[name], value, atol=5e-6, rtol=0, msg=name)
    moved = [(expected[name] - value).abs().max() for name, value in start.items()]
    assert max(moved) > 1e-3
