"""Builds the self-contained folders of the shipped family, once: python -m demo.assemble

`assembled()` returns a folder holding autoencoder/, mllm/ and generator/, ready for from_pretrained. It lies in
$XDG_CACHE_HOME/openvision3 (~/.cache/openvision3) under the hash of the family's files and of the code. The folders
used last stay there, the others are removed when a new one comes.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

import encoder
import generator
import mllm
from demo.family import CHECKPOINTS, check_lineage, file_hash, load_part
from encoder import OpenVision3Autoencoder, OpenVision3AutoencoderConfig
from generator import DiTDHTransformer2DModel, OpenVision3Pipeline
from mllm.assemble import assemble

KEPT = 4  # assembled families in the cache
HASH_LENGTH = 16


def cache_root() -> Path:
    """Where assembled families are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openvision3"


def family_hash(checkpoints: Path) -> str:
    """A short hash of every file of the family, by name and content, and of the code that assembles and loads it."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for package in (encoder, generator, mllm):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    for path in sorted(path for path in checkpoints.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(checkpoints).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()[:HASH_LENGTH]


def assembled(checkpoints: Path = CHECKPOINTS) -> Path:
    """The folder of the assembled family; built on first use, in one piece or not at all.

    Raises:
        FamilyError: a part is missing, or was trained on another file than the one beside it.
    """
    check_lineage(checkpoints)
    folder = cache_root() / family_hash(checkpoints)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            build(checkpoints, Path(work) / "family")
            try:
                (Path(work) / "family").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
        families = [path for path in folder.parent.iterdir() if len(path.name) == HASH_LENGTH]
        for old in sorted(families, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)  # another process may remove it too
    os.utime(folder)  # used just now
    return folder


@torch.no_grad()
def build(checkpoints: Path, out: Path) -> None:
    """Writes autoencoder/, mllm/ and generator/ into `out`."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints / "tokenizer")
    autoencoder = OpenVision3Autoencoder(OpenVision3AutoencoderConfig.from_pretrained(checkpoints / "encoder"))
    vae = {f"vae.{name}": value for name, value in load_part(checkpoints, "vae").items()}
    autoencoder.load_state_dict({**load_part(checkpoints, "encoder"), **vae})
    autoencoder.save_pretrained(out / "autoencoder")
    tokenizer.save_pretrained(out / "autoencoder" / "tokenizer")

    llm = LlamaForCausalLM(AutoConfig.from_pretrained(checkpoints / "llm"))
    llm.load_state_dict(load_part(checkpoints, "llm"))
    with tempfile.TemporaryDirectory() as work:
        llm.save_pretrained(work)
        tokenizer.save_pretrained(work)
        model = assemble(out / "autoencoder", Path(work), out / "mllm")
    model.model.multi_modal_projector.load_state_dict(load_part(checkpoints, "connector"))
    model.save_pretrained(out / "mllm")

    transformer = DiTDHTransformer2DModel.from_config(DiTDHTransformer2DModel.load_config(checkpoints / "transformer"))
    transformer.load_state_dict(load_part(checkpoints, "transformer"))
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoints / "scheduler")
    pipeline = OpenVision3Pipeline(
        transformer.eval(), OpenVision3Autoencoder.from_pretrained(out / "autoencoder"), scheduler,
        autoencoder_tokenizer=tokenizer,
    )  # fmt: skip
    pipeline.save_pretrained(out / "generator")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.assemble", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder in the layout of demo.export")
    print(assembled(parser.parse_args(argv).checkpoints))


if __name__ == "__main__":
    from training.cli import run_cli  # here, since demo.app uses this module without training

    run_cli(main)
