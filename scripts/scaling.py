"""The arithmetic of a full pre-training: python -m scripts.scaling prints the tables of docs/scaling.md.

Parameters and floating point operations are counted on the models themselves, on PyTorch's meta device, which computes
shapes only. Samples and steps are the recipes'. Nothing is measured: what depends on a machine is an assumption, named.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from encoder import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.accumulation import WholeStep
from encoder.lpips import LPIPS
from encoder.vae import DOWNSAMPLING, LATENT_CHANNELS, decode, encode
from training.cli import run_cli

RECIPES = Path(__file__).parents[1] / "encoder" / "recipes"
GLOBAL_BATCH = {128: 8192, 224: 4096, 256: 4096}  # the paper's Table 1, by the pictures' side
NODE_GPUS = 8
# Assumptions. H100 SXM, dense bfloat16 (NVIDIA's data sheet), and the share of it that a training reaches.
PEAK_FLOPS, UTILISATION = 989e12, 0.4
CAPTION_TOKENS, VOCABULARY = 128, 32000  # OpenVision's caption length, its table of words
DATASET_PICTURES = 1_000_000_000  # Recap-DataComp-1B, rounded
BATCH = 2


def flux_shaped_vae() -> AutoencoderKL:
    """A VAE of FLUX.1-dev's sizes with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=LATENT_CHANNELS,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).requires_grad_(False)


def count_flops(call: Callable[[], None]) -> float:
    """Floating point operations of a call on a batch, a sample: a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / BATCH


def saved_bytes(call: Callable[[], None], *modules: nn.Module) -> float:
    """Bytes that a call keeps for its backward pass, a sample; the modules' own weights are not counted."""
    own = {value.untyped_storage()._cdata for module in modules for value in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage()._cdata] = value  # held, so that no storage is seen twice
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        call()
    return sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in own) / BATCH


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@dataclass
class Stage:
    """One recipe in numbers. Operations and bytes are a sample's; operations are those of forward and backward."""

    name: str
    image_size: int
    steps: int
    gpu_batch: int
    pixel_loss_fraction: float
    with_lpips: bool
    model_parameters: int
    encoder_flops: float
    model_flops: float
    pixel_flops: float
    lpips_flops: float
    encode_flops: float
    model_bytes: float
    pixel_bytes: float

    @property
    def samples(self) -> int:
        return self.steps * GLOBAL_BATCH[self.image_size]

    @property
    def gpus(self) -> int:
        return GLOBAL_BATCH[self.image_size] // self.gpu_batch

    @property
    def memory(self) -> float:
        """Bytes on a GPU: float32 weights, gradients and two moments, bfloat16 activations."""
        activations = self.model_bytes + self.pixel_loss_fraction * self.pixel_bytes
        return 16 * self.model_parameters + self.gpu_batch * activations

    @property
    def flops(self) -> float:
        pixels = self.pixel_flops + self.lpips_flops * self.with_lpips
        return self.model_flops + self.pixel_loss_fraction * pixels

    @property
    def gpu_hours(self) -> float:
        return self.samples * self.flops / (PEAK_FLOPS * UTILISATION) / 3600

    @property
    def cache_bytes(self) -> int:
        """float16 latents and uint8 pixels."""
        return 2 * LATENT_CHANNELS * (self.image_size // DOWNSAMPLING) ** 2 + 3 * self.image_size**2

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs."""
        return self.gpus * PEAK_FLOPS * UTILISATION / self.flops


def stage(name: str) -> Stage:
    """Counts the operations of the recipe encoder/recipes/NAME.yaml."""
    recipe = OmegaConf.load(RECIPES / f"{name}.yaml")
    size, image_size = name.split("_")[1], int(name.split("_")[2])
    config = OpenVision3PreTrainingConfig.preset(size, VOCABULARY, image_size, pixel_loss_fraction=0.0)
    with torch.device("meta"):
        model = OpenVision3ForPreTraining(config).train().bfloat16()
        vae, lpips = flux_shaped_vae().bfloat16(), LPIPS().bfloat16()
        latents = torch.randn(BATCH, LATENT_CHANNELS, image_size // DOWNSAMPLING, image_size // DOWNSAMPLING).bfloat16()
        pixels = torch.randn(BATCH, 3, image_size, image_size).bfloat16()
        ids = torch.ones(BATCH, CAPTION_TOKENS, dtype=torch.long)
        # Autocast knows no meta device, so contrast comes from outside: its products are below 0.1 GFLOP a sample.
        feature, scalar = torch.zeros(BATCH, model.encoder.config.projection_dim), torch.ones(())
        whole_step = WholeStep(scalar, feature, feature, scalar, scalar)
        leaf, picture = latents.clone().requires_grad_(), pixels.clone().requires_grad_()

        def step() -> None:
            model(latents, ids, torch.ones_like(ids), whole_step=whole_step).loss.backward()

        def pixel_step() -> None:
            decode(vae, leaf).sum().backward()

        def lpips_step() -> None:
            lpips(picture, pixels).sum().backward()

        with torch.no_grad():
            encode_flops = count_flops(lambda: encode(vae, pixels))
        with_lpips = recipe.objective.lpips_weight > 0
        return Stage(
            name=name,
            image_size=image_size,
            steps=recipe.trainer.max_steps,
            gpu_batch=recipe.trainer.per_device_train_batch_size,
            pixel_loss_fraction=recipe.objective.pixel_loss_fraction,
            with_lpips=with_lpips,
            model_parameters=parameters(model),
            encoder_flops=count_flops(lambda: model.encoder(latents=latents).pooler_output.sum().backward()),
            model_flops=count_flops(step),
            pixel_flops=count_flops(pixel_step),
            lpips_flops=count_flops(lpips_step),
            encode_flops=encode_flops,
            model_bytes=saved_bytes(step, model),
            pixel_bytes=saved_bytes(pixel_step, vae) + (saved_bytes(lpips_step, lpips) if with_lpips else 0),
        )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def tables(stages: list[Stage]) -> str:
    """The tables of docs/scaling.md."""
    operations = [
        [
            each.name,
            f"{each.model_parameters / 1e6:.0f} M",
            f"{each.encoder_flops / 1e9:.0f}",
            f"{each.model_flops / 1e9:.0f}",
            f"{(each.pixel_flops + each.lpips_flops * each.with_lpips) / 1e9:,.0f}",
            f"{each.flops / 1e9:.0f}",
            f"{each.model_bytes / 1e6:.0f}",
            f"{each.pixel_bytes / 1e6:,.0f}",
            f"{each.memory / 1e9:.0f} GB",
        ]
        for each in stages
    ]
    runs = [
        [
            each.name,
            f"{each.samples / 1e9:.3g} billion",
            f"{each.samples * each.flops:.2e}",
            f"{each.gpu_hours:,.0f}",
            f"{each.gpus}",
            f"{each.gpu_hours / each.gpus / 24:.1f}",
            f"{each.samples_per_second:,.0f}",
            f"{each.samples_per_second * each.cache_bytes / (each.gpus // NODE_GPUS) / 1e9:.1f} GB/s",
            f"{8 * each.model_parameters * each.samples_per_second / GLOBAL_BATCH[each.image_size] / 1e9:.1f} GB/s",
        ]
        for each in stages
    ]
    caches = [
        [
            f"{each.image_size} px",
            f"{each.cache_bytes:,}",
            f"{each.cache_bytes * 1_281_167 / 1e9:.0f} GB",
            f"{each.cache_bytes * DATASET_PICTURES / 1e12:.0f} TB",
            f"{each.encode_flops * DATASET_PICTURES / (PEAK_FLOPS * UTILISATION) / 3600:,.0f}",
        ]
        for each in stages
        if "base" in each.name
    ]
    return "\n\n".join(
        [
            table(
                ["recipe", "parameters", "encoder, GFLOP", "all towers, GFLOP", "all pixels, GFLOP", "step, GFLOP",
                 "towers keep, MB", "a picture's pixels keep, MB", "a GPU holds"],
                operations,
            ),
            table(
                ["recipe", "samples", "FLOP", "GPU-hours", "GPUs", "days", "samples/s", "cache read a node",
                 "gradients sent a GPU"],
                runs,
            ),
            table(
                ["side", "bytes a picture", "ImageNet", "a billion", "GPU-hours to encode a billion"],
                caches,
            ),
        ]
    )  # fmt: skip


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(
        prog="python -m scripts.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    print(tables([stage(f"openvision3_{size}_{side}") for size in ("base", "large") for side in (128, 224, 256)]))


if __name__ == "__main__":
    run_cli(main)
