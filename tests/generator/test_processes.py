"""The real generator.train in processes of its own: killed and started again, on two processes, under DeepSpeed."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from generator.train import main as train
from tests.generator.small_training import ROOT, run_python

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def test_killed_while_training_and_while_saving_it_ends_with_the_same_weights(files):
    """Six steps of eight of 32 pictures: the second epoch has begun."""
    kills = str(ROOT / "tests" / "training" / "kills.py")
    options = ["generator.train", str(files / "recipe.yaml"), "trainer.max_steps=6", "trainer.save_steps=2",
               "optimizer=muon", "drop=0.5"]  # fmt: skip
    done = run_python(kills, *options, f"output_dir={files}/unkilled")
    assert done.returncode == 0, done.stderr
    for kill in ("training:3", "saving:4"):
        assert run_python(kills, *options, f"output_dir={files}/killed", KILL_AT=kill).returncode == -signal.SIGKILL
        complete = [path.parent.name for path in (files / "killed").glob("checkpoint-*/COMPLETE")]
        assert complete == ["checkpoint-2"] and not (files / "killed" / "transformer").exists()
    done = run_python(kills, *options, f"output_dir={files}/killed")
    assert done.returncode == 0, done.stderr
    whole, resumed = (load_file(files / name / WEIGHTS) for name in ("unkilled", "killed"))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_two_processes_have_the_gradient_of_one(files, first_gradient):
    one = first_gradient("one", "trainer.per_device_train_batch_size=32")
    two = first_gradient("two", "trainer.per_device_train_batch_size=16", launcher=TWO_PROCESSES)
    for name, value in one.items():
        assert (value - two[name]).norm() <= 1e-3 * value.norm() + 1e-6, name


def test_under_deepspeed_in_bfloat16_times_and_noise_stay_float32(files):
    """A new tiny transformer gives the linear velocity alone, which is float32: so is its loss, if what it sees is."""
    options = [str(files / "recipe.yaml"), "trainer.max_steps=2", "trainer.logging_steps=1"]
    train([*options, f"output_dir={files}/float32"])
    done = run_python("-m", "generator.train", *options, f"output_dir={files}/bfloat16", "trainer.bf16=true",
               f"trainer.deepspeed={ROOT}/training/deepspeed/zero2.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [
        json.loads((files / name / "history.json").read_text())["log_history"][0]["loss/velocity"]
        for name in ("float32", "bfloat16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    weights = load_file(files / "bfloat16" / WEIGHTS)
    assert weights["final_layer.linear.weight"].any() and weights["token_mean"].dtype == torch.float32
