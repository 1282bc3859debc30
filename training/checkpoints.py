"""Resume folders: a checkpoint counts only when its marker, written last, is there."""

import json
import re
import shutil
from pathlib import Path

from transformers import TrainingArguments

MARKER, RUN_FILE = "COMPLETE", "run.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoint folders of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and (path / MARKER).is_file()
    ]
    return [path for _, path in sorted(found)]


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = checkpoints(output_dir)
    return found[-1] if found else None


def discard_incomplete(output_dir: str | Path) -> None:
    """Removes what a killed save has left behind."""
    for path in Path(output_dir).glob("checkpoint-*"):
        if _NAME.fullmatch(path.name) and not (path / MARKER).is_file():
            shutil.rmtree(path)


def mark_complete(folder: str | Path, keep: int | None) -> None:
    """Writes the marker into `folder`; only then are checkpoints beyond the newest `keep` removed.

    The marker of an old checkpoint goes first, so that a kill while removing never leaves half a folder that counts.
    """
    folder = Path(folder)
    (folder / MARKER).write_text("")
    if keep is None:
        return
    for old in checkpoints(folder.parent)[:-keep]:
        (old / MARKER).unlink()
        shutil.rmtree(old)


def write_run(folder: Path, arguments: TrainingArguments, muon_learning_rate: float | None) -> None:
    """Notes in a checkpoint what a resumed training must share with this one to take the same steps."""
    (folder / RUN_FILE).write_text(json.dumps(_run(arguments, muon_learning_rate)))


def check_same_run(folder: Path, arguments: TrainingArguments, muon_learning_rate: float | None) -> None:
    """Refuses to go on where the batches would be others, or the learning rate would be the checkpoint's in silence.

    Raises:
        ValueError: the checkpoint was written by another number of processes, batch size, accumulation, seed, optimizer
            or learning rate.
    """
    then, now = json.loads((folder / RUN_FILE).read_text()), _run(arguments, muon_learning_rate)
    for name, value in now.items():
        if then.get(name, value) != value:
            raise ValueError(
                f"{folder} was written with {name} = {then[name]} and this run has {value}, so that its steps would be "
                f"others: go on with {then[name]}, or choose another output_dir."
            )


def _run(arguments: TrainingArguments, muon_learning_rate: float | None) -> dict[str, int | float | str | None]:
    return {
        "number of processes": arguments.world_size,
        "trainer.per_device_train_batch_size": arguments.per_device_train_batch_size,
        "trainer.gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "trainer.seed": arguments.seed,
        "optimizer": "adamw" if muon_learning_rate is None else "muon",
        "trainer.learning_rate": arguments.learning_rate,
        "muon_learning_rate": muon_learning_rate,
    }
