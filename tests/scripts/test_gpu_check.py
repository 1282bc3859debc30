"""The check of a GPU: fails where there is none, and where a way of running gives another loss."""

import pytest
import torch

from scripts import gpu_check


def test_without_a_gpu_it_says_so_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main([])
    assert stopped.value.code == 1 and capsys.readouterr().out.startswith("not run: there is no GPU here")


def test_every_trainer_runs_its_step_with_activations_recomputed(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "REPEATS", 1)
    monkeypatch.setattr(gpu_check, "WARM_UP", 0)
    gpu_check.main(["--device", "cpu", "--modes", "float32", "bf16, recomputed"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == ["vae", "vae", "encoder", "encoder", "llm", "llm", "generator"] + [
        "generator"
    ]
    assert all(0 < float(row[2]) < 20 and float(row[3]) > 0 for row in rows)


def test_another_loss_is_an_error(monkeypatch):
    losses = iter([2.0, 2.3])
    result = {"seconds": 1.0, "memory": 0.0}
    monkeypatch.setattr(gpu_check, "run_mode", lambda *_, **__: {"loss": next(losses), **result})
    with pytest.raises(ValueError, match="vae, bf16: the loss is 2.3000 and in float32 2.0000"):
        list(gpu_check.check("vae", "cpu", ["float32", "bf16"], {False: 1e9, True: 1e9}))
