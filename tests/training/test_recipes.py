"""A recipe that cannot be used is refused in one sentence that names key and file."""

from dataclasses import dataclass, field

import pytest

from training.arguments import training_arguments
from training.cli import run_cli
from training.recipes import REQUIRED, Recipe, RecipeError, load_recipe


@dataclass
class Own(Recipe):
    """A recipe with keys of its own."""

    data: str = field(default=REQUIRED, metadata={"help": "what to read"})
    size: int = field(default=3, metadata={"help": "how big"})


def _file(tmp_path, text="output_dir: out\ndata: here\n"):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return str(path)


def test_file_and_overrides_make_a_dataclass(tmp_path):
    recipe = load_recipe(Own, [_file(tmp_path), "size=5", "trainer.max_steps=7"])
    assert recipe == Own(output_dir="out", data="here", size=5, trainer={"max_steps": 7})


@pytest.mark.parametrize(("text", "overrides", "words"), [
    ("output_dir: out\ndata: x\nshfit: 3\n", [], "own.yaml.*'shfit'.*keys are .*size"),
    ("output_dir: out\ndata: x\n", ["shfit=3"], "command line.*'shfit'"),
    ("output_dir: out\ndata: x\nsize: many\n", [], "own.yaml.*'size'.*many"),
    ("output_dir: out\n", [], "own.yaml.*'data' has no value"),
    ("output_dir: [out\n", [], "own.yaml cannot be read as YAML"),
    ("output_dir: out\ndata: x\n", ["size"], "'size' has no '='"),
])  # fmt: skip
def test_refusals(tmp_path, text, overrides, words):
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(Own, [_file(tmp_path, text), *overrides])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(RecipeError, match="no recipe at nowhere.yaml"):
        load_recipe(Own, ["nowhere.yaml"])


@pytest.mark.parametrize(("key", "words"), [("max_stepz", "max_stepz"), ("output_dir", "trainer.output_dir")])
def test_the_trainer_block_is_checked_too(tmp_path, key, words):
    recipe = load_recipe(Own, [_file(tmp_path), f"trainer.{key}=1"])
    with pytest.raises(ValueError, match=words):
        training_arguments(recipe)


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as stopped:
        load_recipe(Own, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "what to read (required)" in text and "how big (default 3)" in text and "ema_half_life" in text


def test_a_users_error_is_one_sentence_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["own", "nowhere.yaml"])
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda argv: load_recipe(Own, argv))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: There is no recipe at nowhere.yaml")
