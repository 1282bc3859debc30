"""A pre-training small enough for checks: everything that `encoder.train` reads, made on the spot in seconds."""

from pathlib import Path

import torch

from encoder.cache_latents import main as cache_latents
from encoder.pretraining import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.train_tokenizer import train_tokenizer
from encoder.vae import tiny_vae
from training.shapes.write import write

SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
SIDE, PICTURES, WORDS = 32, 96, 330

RECIPE = """
cache: {folder}/cache
vae: {folder}/vae
tokenizer: {folder}/tokenizer
init_from: {folder}/init
optimizer: muon
ema_half_life: 5
objective: {{pixel_loss_fraction: 0.5}}
trainer: {{max_steps: 12, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1.0e-3,
  save_steps: 2, logging_steps: 5, dataloader_num_workers: 2, use_cpu: true, disable_tqdm: true, seed: 0}}
"""


def write_small_training(folder: Path) -> Path:
    """Writes shards of `shapes`, an untrained VAE and encoder, tokenizer and latent cache; returns the recipe's path.

    The recipe has all that a resumed training must restore: workers, micro-batches, noise, a share of the pixels, Muon
    and averaged weights. Its output_dir is the caller's to give.
    """
    torch.manual_seed(0)
    write(folder / "data", "train", PICTURES, SIDE, corpus=200)
    train_tokenizer(folder / "data" / "train" / "corpus.txt", folder / "tokenizer", WORDS)
    tiny_vae().save_pretrained(folder / "vae")
    cache_latents(
        ["--shards", f"{folder}/data/train", "--vae", f"{folder}/vae", "--image-size", str(SIDE)]
        + ["--out", f"{folder}/cache"]
    )
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": SIDE, **SIZES},
        decoder=dict(SIZES),
        text={"vocab_size": WORDS, "projection_dim": SIZES["hidden_size"], **SIZES},
    )
    OpenVision3ForPreTraining(config).save_pretrained(folder / "init")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder / "recipe.yaml"
