"""`make tiny` at 0.4% of its size, in a tree whose demo/checkpoints holds the VAE and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("training", "encoder", "mllm", "generator", "scripts")


@pytest.mark.timeout(1200)
def test_the_whole_chain_runs_from_the_vae_alone_and_goes_on_where_it_was(tmp_path):
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "demo" / "checkpoints" / "vae", tmp_path / "demo" / "checkpoints" / "vae")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def tiny(*more):
        command = [sys.executable, "-m", "scripts.tiny", "--scale=0.004", *more]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = tiny()
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "runs/tiny/report.json").read_text())
    assert {row["what"] for row in report["table"]} >= {"captions all right", "questions, exact", "drawings, single"}
    assert "blind" in next(row["beside"] for row in report["table"] if row["what"] == "questions, exact")
    assert len(report["parts"]) == 26 and report["minutes"] > 0
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert "data:image/png;base64," in page and "captions all right" in page
    (tmp_path / "runs/tiny/done/questions_blind.json").unlink()
    again = tiny()
    assert again.returncode == 0 and again.stdout.count("about") == 1, again.stdout
    missing = tiny("--vae=nowhere")
    assert missing.returncode == 2 and "no VAE at nowhere" in missing.stderr
