"""Which weights a model was trained on: noted in its folder when its training starts, checked when it goes on.

trained_on.json in the output folder holds {name of the parent: hash of its weights}. `mllm.assemble` notes the encoder,
every stage of `mllm.train` carries it on; `demo.export` refuses parts that do not belong together.
"""

import hashlib
import json
import os
from pathlib import Path

FILE = "trained_on.json"


def weights_hash(folder: str | Path) -> str:
    """A short hash of the weight files that lie in a model's folder.

    Raises:
        ValueError: there are none.
    """
    files = [path for path in sorted(Path(folder).iterdir()) if path.suffix in (".safetensors", ".bin")]
    if not files:
        raise ValueError(f"There are no weights in {folder}; name the folder of a saved model.")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def read_parents(folder: str | Path) -> dict[str, str]:
    """What the model in a folder was trained on, by name; empty if nothing was noted."""
    path = Path(folder) / FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def write_parents(folder: str | Path, parents: dict[str, str]) -> None:
    """Notes what the model in a folder is made of, whatever was noted before."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    whole = Path(folder) / f"{FILE}.{os.getpid()}"
    whole.write_text(json.dumps(parents))
    whole.replace(Path(folder) / FILE)


def start_training(folder: str | Path, parents: dict[str, str]) -> None:
    """Notes what the training in a folder starts from; one that goes on must find the same again.

    Raises:
        ValueError: the training started from other weights.
    """
    noted = read_parents(folder)
    for name in sorted(noted.keys() | parents.keys()) if noted else ():
        if noted.get(name) != parents.get(name):
            raise ValueError(
                f"The training in {folder} started on the {name} {noted.get(name)} and would go on with "
                f"{parents.get(name)}: bring the old weights back, or start anew in another output_dir."
            )
    write_parents(folder, parents)
