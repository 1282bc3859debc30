"""Runs a step of every trainer's objective on the GPU, in every way of running it, and says how fast it is.

    python -m scripts.gpu_check
    python -m scripts.gpu_check --device cpu     # tries the command itself, at small sizes

For VAE, encoder, LLM and generator: forward and backward in float32, then by bfloat16 autocast, with activations
recomputed, and compiled. Each must give the loss of float32 within a few percent, and finite gradients. A step's share
of peak is its matrix products (torch's own count, in float32's step) over the time it takes, against what one large
matrix product reaches here in that dtype. Where nothing ran, or a check fails, the command fails.
"""

import argparse
import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from encoder.linear_code import LinearCode
from encoder.model import OpenVision3Config
from encoder.pretraining import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.train import PreTrainingObjective
from encoder.train_vae import VAEObjective
from encoder.vae import LATENT_CHANNELS, tiny_vae
from generator.objective import FlowObjective
from generator.transformer import DiTDHTransformer2DModel
from mllm.objective import MultimodalObjective
from training.cli import run_cli
from training.modules import enable_checkpointing

REPEATS, WARM_UP = 5, 2
# Of the float32 loss. bfloat16 has 8 bits.
TOLERANCE = 0.05
MODES = {
    "float32": {},
    "bf16": {"bf16": True},
    "bf16, recomputed": {"bf16": True, "recomputed": True},
    "bf16, compiled": {"bf16": True, "compiled": True},
}


def vae(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """The tiny VAE on crops."""
    crops = torch.rand(8 if small else 256, 3, 32, 32) * 2 - 1
    return VAEObjective(tiny_vae(), 2.0, 0.5, 0.1, LinearCode.fit(torch.rand(512, 3, 32, 32) * 2 - 1)), {
        "pixel_values": crops
    }


def encoder(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """Joint pre-training, the pixel loss on an eighth of the rows."""
    size, side, rows, words = ("tiny", 64, 8, 500) if small else ("base", 128, 128, 32000)
    config = OpenVision3PreTrainingConfig.preset(size, words, side, pixel_loss_fraction=1 / 8, noise_tau=0.0)
    objective = PreTrainingObjective(OpenVision3ForPreTraining(config), tiny_vae().requires_grad_(False))
    ids = torch.randint(3, words, (rows, 20 if small else 128))
    return objective, {
        "latents": torch.randn(rows, LATENT_CHANNELS, side // 8, side // 8),
        "pixels": torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def llm(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """Connector and LLM on cached tokens of the encoder."""
    size, side, rows, length = ("tiny", 64, 4, 32) if small else ("base", 256, 16, 768)
    vision, width, layers = OpenVision3Config.preset(size, image_size=side), *((64, 2) if small else (1024, 12))
    count = (side // vision.patch_size) ** 2
    text = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=1024,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=5, vision_feature_select_strategy="full",
        vision_feature_layer=-1, image_seq_length=count,
    )  # fmt: skip
    objective = MultimodalObjective(LlavaForConditionalGeneration(config), cached=True)
    ids = torch.randint(6, 32000, (rows, length))
    ids[:, 1 : 1 + count] = 5
    return objective, {
        "input_ids": ids,
        "labels": ids.masked_fill(ids == 5, -100),
        "attention_mask": torch.ones_like(ids),
        "images": torch.randn(rows, count, vision.hidden_size),
    }


def generator(small: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """Flow matching on cached tokens, by class."""
    size, side, channels, rows = ("tiny", 4, 192, 8) if small else ("B", 16, 768, 32)
    transformer = DiTDHTransformer2DModel.preset(size, sample_size=side, in_channels=channels, num_classes=1000)
    return FlowObjective(transformer, 6.93, nn.Identity(), None), {
        "timestep": torch.rand(rows),
        "noise": torch.randn(rows, side**2, channels),
        "image_tokens": torch.randn(rows, side**2, channels),
        "class_labels": torch.randint(0, 1000, (rows,)),
    }


TRAINERS = {make.__name__: make for make in (vae, encoder, llm, generator)}


def timed(call: Callable[[], Any], device: str) -> float:
    """Median seconds of a call, the device waited for."""
    times = []
    for repeat in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat >= WARM_UP:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_peak(device: str, dtype: torch.dtype, small: bool) -> float:
    """Floating point operations a second of one large square matrix product."""
    side = 512 if small else 8192
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: one @ other, device)


def run_mode(
    objective: nn.Module, batch: dict[str, Tensor], device: str, bf16=False, recomputed=False, compiled=False
) -> dict[str, float]:
    """Loss, seconds and peak memory in GB (of a GPU) of a step in one way of running it.

    Raises:
        ValueError: a gradient is not finite.
    """
    objective = copy.deepcopy(objective).train()
    if recomputed:
        enable_checkpointing(objective, None)
    call = torch.compile(objective) if compiled else objective

    def step() -> Tensor:
        objective.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = call(**batch)["loss"]
        loss.backward()
        return loss.detach()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loss, seconds = step().item(), timed(step, device)
    for name, value in objective.named_parameters():
        if value.grad is not None and not value.grad.isfinite().all():
            raise ValueError(f"The gradient of {name} is not finite.")
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {"loss": loss, "seconds": seconds, "memory": memory}


def check(name: str, device: str, modes: list[str], peaks: dict[bool, float]) -> Iterator[str]:
    """The rows of one trainer's table.

    Raises:
        ValueError: a mode's loss is not float32's.
    """
    torch.manual_seed(0)
    objective, batch = TRAINERS[name](device == "cpu")
    objective.to(device)
    batch = {key: value.to(device) for key, value in batch.items()}
    with FlopCounterMode(display=False) as counter:
        expected = objective.train()(**batch)["loss"]
        expected.backward()
    flops, expected = counter.get_total_flops(), None
    for mode in modes:
        result = run_mode(objective, batch, device, **MODES[mode])
        expected = result["loss"] if expected is None else expected
        if not abs(result["loss"] - expected) <= TOLERANCE * abs(expected):
            raise ValueError(f"{name}, {mode}: the loss is {result['loss']:.4f} and in {modes[0]} {expected:.4f}.")
        share = flops / result["seconds"] / peaks["bf16" in MODES[mode]]
        yield (
            f"| {name} | {mode} | {result['loss']:.4f} | {1000 * result['seconds']:.1f} | {share:.0%} | "
            f"{result['memory']:.2f} |"
        )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(TRAINERS), default=list(TRAINERS), help="these trainers")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), help="these ways of running")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("not run: there is no GPU here (torch.cuda.is_available() is false)")
        raise SystemExit(1)
    peaks = {
        bf16: matmul_peak(args.device, torch.bfloat16 if bf16 else torch.float32, args.device == "cpu")
        for bf16 in {"bf16" in MODES[mode] for mode in args.modes}
    }
    print(torch.cuda.get_device_name() if args.device == "cuda" else "CPU, small sizes")
    for bf16, peak in sorted(peaks.items()):
        print(f"matrix product, {'bfloat16' if bf16 else 'float32'}: {peak / 1e12:.2f} TFLOP/s")
    print("| trainer | mode | loss | ms a step | share of peak | peak GB |\n|---|---|---|---|---|---|")
    for name in args.only:
        for row in check(name, args.device, args.modes, peaks):
            print(row, flush=True)


if __name__ == "__main__":
    run_cli(main)
