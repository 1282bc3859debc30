"""Packs a trained family into the layout that ships: each weight once, float16.

    python -m demo.export runs/tiny

RUN holds encoder/autoencoder, mllm, generator and cache64, as `make tiny` leaves them.
"""

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import LlavaForConditionalGeneration

from demo.family import CHECKPOINTS, FamilyError, save_part
from demo.outside import Outside
from encoder import OpenVision3Autoencoder
from encoder.cache import LatentCache, vae_hash
from encoder.lineage import read_parents, weights_hash
from encoder.tokenizer import load_tokenizer
from generator.pipeline import load_pipeline
from training.cli import run_cli

CACHE = "cache64"  # of the training pictures, beside the parts


def check_run(run: Path, autoencoder: OpenVision3Autoencoder) -> None:
    """Refuses a run whose parts were trained on others than those beside them.

    Raises:
        FamilyError: names the part, what it was trained on and what lies beside it.
    """
    folder = run / "encoder" / "autoencoder"
    vae, encoder = ("vae", vae_hash(autoencoder.vae)), ("encoder", weights_hash(folder))
    for part, (parent, beside) in (("encoder", vae), ("mllm", encoder), ("generator", encoder)):
        noted = read_parents(run / part).get(parent, "that nothing is noted of")
        if noted != beside:
            raise FamilyError(
                f"{run / part} was trained on the {parent} {noted}, not on {beside}, the one in {folder}; "
                "train it again on that one."
            )


@torch.no_grad()
def export(run: Path, out: Path) -> None:
    """Writes the family of `run` into `out`; its latent cache says what is not outside the family's world.

    Raises:
        FamilyError: a part was trained on another VAE or encoder than the one beside it; nothing is written.
    """
    autoencoder = OpenVision3Autoencoder.from_pretrained(run / "encoder" / "autoencoder")
    check_run(run, autoencoder)
    vae = AutoencoderKL.from_config(autoencoder.config.vae)
    vae.save_config(out / "vae")
    state = autoencoder.state_dict()
    save_part(out, "vae", {name[4:]: value for name, value in state.items() if name.startswith("vae.")})
    autoencoder.config.save_pretrained(out / "encoder")
    save_part(out, "encoder", {name: value for name, value in state.items() if not name.startswith("vae.")})
    load_tokenizer(run / "encoder" / "autoencoder" / "tokenizer").save_pretrained(out / "tokenizer")

    model = LlavaForConditionalGeneration.from_pretrained(run / "mllm")
    model.config.text_config.save_pretrained(out / "llm")
    llm = {f"model.{name}": value for name, value in model.model.language_model.state_dict().items()}
    save_part(out, "llm", {**llm, "lm_head.weight": model.lm_head.weight})
    save_part(out, "connector", model.model.multi_modal_projector.state_dict())

    pipeline = load_pipeline(run / "generator")
    pipeline.transformer.save_config(out / "transformer")
    save_part(out, "transformer", pipeline.transformer.state_dict())
    pipeline.scheduler.save_pretrained(out / "scheduler")

    latents = LatentCache([run / CACHE], autoencoder.vae).latents[:8192]
    pooled = [autoencoder.pool(autoencoder.encode_latents(part.float())) for part in latents.split(256)]
    Outside.fit(torch.cat(pooled)).save(out)
    if (run / "report.json").is_file():
        shutil.copyfile(run / "report.json", out / "report.json")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {size:.1f} MB")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that make tiny wrote")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, help="folder of the shipped family")
    args = parser.parse_args(argv)
    export(args.run, args.out)


if __name__ == "__main__":
    run_cli(main)
