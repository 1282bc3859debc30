"""Imports go one way, and using a model loads nothing that only training needs."""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
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


# What a package's modules may import beside the dependencies that every installation has.
EXTRAS = {package: ["train"] for package in ALLOWED} | {
    "demo": ["train", "demo"],
    "mllm": ["train", "serve"],
    "generator": ["train", "fidelity"],
}


@pytest.mark.parametrize("package", EXTRAS)
def test_every_library_is_declared(package):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        line.split(">")[0].lower().replace("-", "_")
        for lines in (project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS[package]))
        for line in lines
    }
    distributions = importlib.metadata.packages_distributions()
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in set(_imported(path)) - PACKAGES - sys.stdlib_module_names:
            found = {distribution.lower().replace("-", "_") for distribution in distributions.get(name, [name])}
            assert found & declared, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not declare"


def test_using_a_model_loads_nothing_of_training():
    code = (
        "import sys, encoder, demo.app; from mllm import ChatModel; from generator import OpenVision3Pipeline;"
        "bad = [m for m in sys.modules if m.split('.')[0] in"
        " ('training', 'deepspeed', 'datasets', 'webdataset', 'omegaconf')]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
