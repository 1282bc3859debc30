"""Where the parts of the shipped family lie, and which part was trained on which."""

import hashlib
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKPOINTS = Path(__file__).parent / "checkpoints"
WEIGHTS = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "encoder": "encoder/model.safetensors",
    "llm": "llm/model.safetensors",
    "connector": "connector.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
}
# Every part and what it was trained on; the connector and the LLM are trained together.
LINEAGE = {"vae": (), "encoder": ("vae",), "llm": ("encoder",), "connector": ("encoder",), "transformer": ("encoder",)}


class FamilyError(ValueError):
    """The parts of a family are missing or do not belong together; the message names them."""


def file_hash(path: Path) -> str:
    """The first 16 hex digits of the file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def save_part(folder: Path, part: str, state: dict[str, Tensor]) -> None:
    """Writes a part's weights as float16, with the hashes of the files it was trained on in the metadata."""
    path = folder / WEIGHTS[part]
    path.parent.mkdir(parents=True, exist_ok=True)
    parents = {parent: file_hash(folder / WEIGHTS[parent]) for parent in LINEAGE[part]}
    half = {name: value.detach().half().contiguous() if value.is_floating_point() else value.contiguous()
            for name, value in state.items()}  # fmt: skip
    save_file(half, path, metadata={"format": "pt", "trained_on": json.dumps(parents)})


def load_part(folder: Path, part: str) -> dict[str, Tensor]:
    """A part's weights as float32."""
    state = load_file(folder / WEIGHTS[part])
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def check_lineage(folder: Path) -> None:
    """Refuses a family with a part that is missing or was trained on another file than the one beside it.

    Raises:
        FamilyError: names the part and what it was trained on.
    """
    for name in WEIGHTS.values():
        if not (folder / name).is_file():
            raise FamilyError(f"The family in {folder} has no {name}; export one with python -m demo.export.")
    for part, parents in LINEAGE.items():
        with safe_open(folder / WEIGHTS[part], framework="pt") as file:
            trained_on = json.loads((file.metadata() or {}).get("trained_on", "{}"))
        for parent in parents:
            found = file_hash(folder / WEIGHTS[parent])
            if trained_on.get(parent) != found:
                raise FamilyError(
                    f"{folder / WEIGHTS[part]} was trained on {parent} {trained_on.get(parent)}, not on the one "
                    f"beside it ({found}); export the whole family again with python -m demo.export."
                )
