"""mllm.train under ZeRO-2 and ZeRO-3 in two processes: trains, saves, goes on from a checkpoint, exports."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

from mllm import ChatModel

ROOT = Path(__file__).parent.parent.parent


def _launch(arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mllm.train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _weights(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder).state_dict()


def _moved(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def _zero(stage):
    return f"trainer.deepspeed={ROOT / 'training' / 'deepspeed' / f'zero{stage}.json'}"


def _trains_and_goes_on(command, out):
    """The weights of a training that was not interrupted, and equal ones from one that went on at step 2."""
    _launch([*command, "trainer.save_steps=2", "trainer.save_total_limit=2"])
    whole = _weights(out)
    (out / "model.safetensors").unlink()
    shutil.rmtree(out / "checkpoint-4")
    _launch([*command, "trainer.save_steps=2", "trainer.save_total_limit=2"])
    assert not _moved(whole, _weights(out))
    return whole


def test_stage_one_under_zero2_saves_nothing_frozen_and_goes_on(family, arguments, tmp_path):
    before = _weights(family / "mllm")
    after = _trains_and_goes_on(arguments("out", _zero(2), "trainable=[connector]"), tmp_path / "out")
    moved = _moved(before, after)
    assert moved and all("multi_modal_projector" in name for name in moved)
    with safe_open(tmp_path / "out" / "checkpoint-4" / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("connector.") for name in file.keys())
    frozen = 4 * sum(value.numel() for name, value in before.items() if "language_model" in name)
    for path in (tmp_path / "out" / "checkpoint-4").rglob("*"):
        assert path.stat().st_size < frozen / 2, path


def test_stage_two_under_zero3_in_bfloat16_goes_on_and_exports_the_whole(family, arguments, tmp_path):
    command = arguments(
        "out",
        _zero(3),
        "trainable=[connector,llm,head]",
        "trainer.bf16=true",
        "trainer.activation_checkpointing=true",
    )
    after = _trains_and_goes_on(command, tmp_path / "out")
    moved = _moved(_weights(family / "mllm"), after)
    assert any("language_model" in name for name in moved) and not any("vision_tower" in name for name in moved)
    model = ChatModel.from_pretrained(tmp_path / "out", max_new_tokens=2)
    assert isinstance(model.chat([{"role": "user", "content": "what color?"}]), str)
