"""Imports go one way, and using a model loads nothing that only training needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "training": set(),
    "encoder": {"training"},
    "mllm": {"training", "encoder"},
    "generator": {"training", "encoder"},
    "demo": {"training", "encoder", "mllm", "generator"},
}
PACKAGES = {*ALLOWED, "scripts"}


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = set(_imported(path)) & PACKAGES - ALLOWED[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_using_a_model_loads_nothing_of_training():
    code = (
        "import sys, encoder, demo.app; from mllm import ChatModel; from generator import OpenVision3Pipeline;"
        "bad = [m for m in sys.modules if m.split('.')[0] in"
        " ('training', 'deepspeed', 'datasets', 'webdataset', 'omegaconf')]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
