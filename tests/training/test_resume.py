"""Killed and started again with the same command, a training ends with the weights of one that was not killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
TOY = Path(__file__).parent / "toy.py"
RECIPE = """
ema_half_life: 5
trainer: {max_steps: 14, per_device_train_batch_size: 4, learning_rate: 0.01, save_steps: 3, logging_steps: 1,
  use_cpu: true, disable_tqdm: true}
"""
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def _run(folder, *overrides, launcher=(), **environment):
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, *launcher, str(TOY), str(folder / "recipe.yaml"), f"output_dir={folder / 'out'}"]
    return subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=300, env={
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment})  # fmt: skip


def _weights(folder):
    return load_file(folder / "out" / "toy.safetensors")


def _folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


@pytest.mark.parametrize("option", ["optimizer=muon", "trainer.dataloader_num_workers=2"])
def test_killed_while_training_and_while_saving(tmp_path, option):
    whole, killed = _folder(tmp_path, "whole"), _folder(tmp_path, "killed")
    done = _run(whole, option)
    assert done.returncode == 0, done.stderr
    for kill in ("training:8", "saving:9"):
        assert _run(killed, option, KILL_AT=kill).returncode == -signal.SIGKILL
        assert not (killed / "out" / "toy.safetensors").exists()
    complete = sorted(path.parent.name for path in (killed / "out").glob("checkpoint-*/COMPLETE"))
    assert complete == ["checkpoint-6"], complete
    done = _run(killed, option)
    assert done.returncode == 0, done.stderr
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(killed)[name]), name


def test_a_training_killed_while_exporting_trains_no_further(tmp_path):
    folder = _folder(tmp_path, "run")
    assert _run(folder).returncode == 0
    first = _weights(folder)
    for name in ("toy.safetensors", "history.json"):
        (folder / "out" / name).unlink()
    done = _run(folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder / "out").glob("checkpoint-*")] == ["checkpoint-14"]
    for name, value in first.items():
        assert torch.equal(value, _weights(folder)[name]), name
    steps = [row["step"] for row in json.loads((folder / "out" / "history.json").read_text())["log_history"]]
    assert steps == list(range(1, 15))


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    one, two = _folder(tmp_path, "one"), _folder(tmp_path, "two")
    plain = ["trainer.max_steps=4", "trainable=[body.2]", "trainer.save_steps=10"]
    done = _run(one, *plain, "trainer.per_device_train_batch_size=8", BAD_AT="inf", NO_DROPOUT="1")
    assert done.returncode == 0, done.stderr
    done = _run(two, *plain, launcher=TWO_PROCESSES, NO_DROPOUT="1")
    assert done.returncode == 0, done.stderr
    for name, value in _weights(one).items():
        # Half a batch is summed in another order than the whole one; the CPU's BLAS decides which.
        assert torch.allclose(value, _weights(two)[name], atol=1e-5), name


def test_frozen_parts_do_not_move(tmp_path):
    folder = _folder(tmp_path, "run")
    assert _run(folder, "trainable=[body.2]", "trainer.max_steps=3").returncode == 0
    torch.manual_seed(0)
    first = torch.nn.Linear(6, 6)
    after = _weights(folder)
    assert torch.equal(first.weight, after["frozen.weight"])
    second = torch.nn.Linear(6, 8)
    assert torch.equal(second.weight, after["body.0.weight"])


def test_a_loss_that_is_no_number_stops_and_names_the_samples(tmp_path):
    folder = _folder(tmp_path, "run")
    done = _run(folder, BAD_AT="5")
    assert done.returncode != 0
    assert "Step 5: " in done.stderr and "fit" in done.stderr and "samples s" in done.stderr
    assert not (folder / "out" / "toy.safetensors").exists()


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    folder = _folder(tmp_path, "run")
    assert _run(folder, "trainer.max_steps=3").returncode == 0
    done = _run(folder, "trainer.max_steps=6", "trainable=[body.2]")
    assert done.returncode != 0 and "does not belong to this recipe" in done.stderr


def test_other_batches_in_the_same_folder_are_refused(tmp_path):
    folder = _folder(tmp_path, "run")
    assert _run(folder, "trainer.max_steps=3").returncode == 0
    done = _run(folder, "trainer.max_steps=6", "trainer.per_device_train_batch_size=2")
    assert done.returncode != 0
    assert "per_device_train_batch_size = 4 and this run has 2" in done.stderr
    done = _run(folder, "trainer.max_steps=6", launcher=TWO_PROCESSES)
    assert done.returncode != 0 and "number of processes = 1 and this run has 2" in done.stderr


@pytest.mark.parametrize("launcher", [(), TWO_PROCESSES], ids=["one", "two"])
def test_zero2_learns_what_plain_training_does_and_resumes(tmp_path, launcher):
    plain, sharded = _folder(tmp_path, "plain"), _folder(tmp_path, "sharded")
    zero2 = f"trainer.deepspeed={ROOT / 'training' / 'deepspeed' / 'zero2.json'}"
    done = _run(plain, "trainer.max_steps=6", launcher=launcher)
    assert done.returncode == 0, done.stderr
    done = _run(sharded, "trainer.max_steps=6", zero2, launcher=launcher, KILL_AT="training:4")
    assert done.returncode != 0 and (sharded / "out" / "checkpoint-3" / "COMPLETE").is_file(), done.stderr
    done = _run(sharded, "trainer.max_steps=6", zero2, launcher=launcher)
    assert done.returncode == 0, done.stderr
    for name, value in _weights(plain).items():
        assert torch.allclose(value, _weights(sharded)[name], atol=1e-5), name


def test_averaged_weights_under_zero3_are_refused(tmp_path):
    folder = _folder(tmp_path, "run")
    (folder / "zero3.json").write_text('{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3}}')
    done = _run(folder, f"trainer.deepspeed={folder / 'zero3.json'}")
    assert done.returncode != 0 and "use ZeRO-2, or ema_half_life=0" in done.stderr


def test_dry_run_says_what_would_be_trained_and_trains_nothing(tmp_path):
    folder = _folder(tmp_path, "run")
    done = _run(folder, "dry_run=true")
    assert done.returncode == 0 and "42 frozen" in done.stdout and "estimate for 14 steps" in done.stdout
    assert not list((folder / "out").glob("checkpoint-*"))
