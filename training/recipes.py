"""Recipes: a YAML file plus `key=value` overrides, checked against a dataclass."""

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING as REQUIRED
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the key and the file."""


@dataclass
class Recipe:
    """Keys that every recipe has."""

    output_dir: str = field(
        default=REQUIRED, metadata={"help": "folder for checkpoints, logs, samples and the exported model"}
    )
    trainer: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "passed unchanged to transformers.TrainingArguments"}
    )
    optimizer: str = field(
        default="adamw",
        metadata={"help": "adamw, or muon: the matrices inside blocks by Muon, the rest by AdamW (training/muon.py)"},
    )
    muon_learning_rate: float = field(
        default=4e-3, metadata={"help": "Muon's, for the matrices; trainer.learning_rate is AdamW's, for the rest"}
    )
    learning_rates: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "AdamW's own rates for the parameters that start with a prefix, as {connector: 2.0e-5}"},
    )
    trainable: list[str] = field(
        default_factory=list, metadata={"help": "prefixes of the parameters that learn; empty: all of them"}
    )
    init_from: str | None = field(default=None, metadata={"help": "folder of the model this stage starts from"})
    ema_half_life: float = field(default=0.0, metadata={"help": "half-life of averaged weights in steps; 0: none"})
    sample_steps: int = field(default=0, metadata={"help": "write sample pictures every so many steps; 0: at the end"})
    dry_run: bool = field(
        default=False,
        metadata={"help": "print parameters, a batch (with pictures in dry_run.png), memory and time; stop"},
    )


def load_recipe(schema: type[T], argv: list[str]) -> T:
    """Reads `argv = [recipe.yaml, "key=value", ...]` into the dataclass `schema`.

    Overrides reach into nested keys (`trainer.max_steps=10`). `--help` prints the keys of the schema and exits.

    Raises:
        RecipeError: no recipe given, unreadable file, unknown key, wrong type or missing value; the sentence names it.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(recipe_help(schema))
        raise SystemExit(0 if argv else 2)
    path, overrides = Path(argv[0]), argv[1:]
    if not path.is_file():
        raise RecipeError(f"There is no recipe at {path}; name a .yaml file first, then key=value overrides.")
    for override in overrides:
        if "=" not in override:
            raise RecipeError(
                f"The override {override!r} has no '='; write it as key=value, for instance dry_run=true."
            )
    config = OmegaConf.structured(schema)
    for source, read in (
        (str(path), lambda: OmegaConf.load(path)),
        ("the command line", lambda: OmegaConf.from_dotlist(overrides)),
    ):
        try:
            config = OmegaConf.merge(config, read())
        except OmegaConfBaseException as error:
            raise RecipeError(_sentence(error, source, schema)) from error
        except Exception as error:  # a YAML syntax error has no public base class in OmegaConf
            raise RecipeError(f"{source} cannot be read as YAML: {str(error).splitlines()[0]}.") from error
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise RecipeError(
            f"{path}: the key {error.full_key!r} has no value; set it in the file or as key=value."
        ) from error
    except OmegaConfBaseException as error:
        raise RecipeError(_sentence(error, str(path), schema)) from error


def _sentence(error: OmegaConfBaseException, source: str, schema: type) -> str:
    reason = str(error).splitlines()[0].rstrip(".")
    known = ", ".join(item.name for item in fields(schema))
    return f"{source}: key {error.full_key!r} is not accepted ({reason}); the keys are {known}."


def check_init_from(init_from: str) -> None:
    """Refuses a folder that holds no model, which the libraries would take for the name of a repository.

    Raises:
        RecipeError: there is no `config.json` in it.
    """
    if not (Path(init_from) / "config.json").is_file():
        raise RecipeError(
            f"init_from: there is no model at {init_from} (no config.json); name the folder that an earlier training "
            "wrote, or leave init_from out to start anew."
        )


def recipe_help(schema: type) -> str:
    """One line per key of the schema: name, type, default, what it means."""
    lines = ["usage: python -m <package>.<trainer> RECIPE.yaml [key=value ...]", "", (schema.__doc__ or "").strip(), ""]
    for item in fields(schema):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        shown = "required" if default == REQUIRED else f"default {default!r}"
        lines.append(f"  {item.name:24} {item.metadata.get('help', '')} ({shown})")
    return "\n".join(lines)
