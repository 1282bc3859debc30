"""Rows about the generator."""

from collections.abc import Callable

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from generator import DiTDHTransformer2DModel
from generator.flow import dimension_shift, sample, uniform_timesteps
from scripts.bench.compare import compare

CHANNELS, SIDE, CLASSES = 768, 16, 1000  # base encoder's tokens of a 256 px picture
SCALE, INTERVAL, STEPS = 1.5, (0.1, 0.9), 50


def _gflop(call: Callable[[], None]) -> float:
    """Billions of floating-point operations; attention as its two products, which every kernel computes."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def _dit(num_layers: int) -> DiTTransformer2DModel:
    """1,024 wide, as DiT-L is."""
    return DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=64, in_channels=CHANNELS, out_channels=CHANNELS,
        num_layers=num_layers, sample_size=SIDE, patch_size=1, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip


def transformer_against_dit(device: str) -> str:
    """Forward and backward of DiT^DH-S against diffusers' DiT with as many layers as have its FLOPs."""
    dtype, batch = (torch.bfloat16, 32) if device == "cuda" else (torch.float32, 1)
    tokens = torch.randn(batch, CHANNELS, SIDE, SIDE, device=device, dtype=dtype)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def step(model: nn.Module, timestep: Tensor) -> Callable[[], None]:
        return lambda: model(tokens, timestep=timestep, class_labels=labels).sample.float().mean().backward()

    def ours(model: nn.Module) -> Callable[[], None]:
        return step(model, torch.full((batch,), 0.5, device=device))

    def theirs(model: nn.Module) -> Callable[[], None]:
        return step(model, torch.full((batch,), 500, device=device))

    model = DiTDHTransformer2DModel.preset("S", sample_size=SIDE, in_channels=CHANNELS, num_classes=CLASSES)
    model = model.to(device, dtype)
    work = _gflop(ours(model))
    one, two = (_gflop(theirs(_dit(layers).to(device, dtype))) for layers in (1, 2))
    layers = 1 + round((work - one) / (two - one))
    dit = _dit(layers).to(device, dtype)
    dit_work = _gflop(theirs(dit))
    if device == "cuda":
        model, dit = torch.compile(model), torch.compile(dit)
    a, b = compare(ours(model), theirs(dit), device)
    return (
        f"DiT^DH-S, forward+backward, batch {batch}: {work:.0f} GFLOP in {a:.3f} s, diffusers DiT of {layers} layers "
        f"{dit_work:.0f} GFLOP in {b:.3f} s, speed at equal FLOPs {(work / a) / (dit_work / b):.2f}x"
    )


def guidance_interval(device: str) -> str:
    """Sampling with guidance inside an interval of noise levels against guidance everywhere."""
    small = {"hidden_size": (192, 384), "num_layers": (2, 1), "num_attention_heads": (3, 6)}  # a minute on one core
    shape = {} if device == "cuda" else small
    model = DiTDHTransformer2DModel.preset(
        "S", sample_size=SIDE, in_channels=CHANNELS, num_classes=CLASSES, **shape
    ).to(device).eval()  # fmt: skip
    noise = torch.randn(1, CHANNELS, SIDE, SIDE, device=device)
    shift = dimension_shift(CHANNELS, SIDE, SIDE)
    times, labels = uniform_timesteps(STEPS, shift), torch.zeros(1, dtype=torch.long, device=device)

    def draw(interval: tuple[float, float]) -> Callable[[], None]:
        return lambda: sample(model, noise, times, labels, SCALE, interval)

    a, b = compare(draw(INTERVAL), draw((0.0, 1.0)), device)
    guided = int(((times[:-1] >= INTERVAL[0]) & (times[:-1] <= INTERVAL[1])).sum())
    width = model.config.hidden_size[0]
    return (
        f"{STEPS} steps, {CHANNELS} x {SIDE} x {SIDE}, shift {shift:.2f}, width {width}: guidance in {list(INTERVAL)} "
        f"({guided} steps) {a:.2f} s, everywhere {b:.2f} s, speed {b / a:.2f}x"
    )


ROWS = [transformer_against_dit, guidance_interval]
