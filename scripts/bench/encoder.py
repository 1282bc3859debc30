"""Rows about the encoder, its losses, optimizer and loader."""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from encoder import OpenVision3Config, OpenVision3ForPreTraining, OpenVision3Model, OpenVision3PreTrainingConfig
from encoder.autoencoder import OpenVision3Autoencoder
from encoder.cache import LatentCache
from encoder.cache_latents import cache_latents
from encoder.data import CachedPairs, ImageTextStream
from encoder.decoder import DECODER_PRESETS, LatentDecoder
from encoder.losses import caption_loss
from encoder.vae import decode, encode, tiny_vae
from scripts.bench.compare import compare, in_own_process, peak_megabytes, reset_peak
from scripts.scaling import flux_shaped_vae
from training.muon import make_muon
from training.shapes.write import write
from training.shards import write_shards


def encoder_against_vit(device: str) -> str:
    """Forward and backward of the base encoder from latents against transformers' ViT-B/16, 256 tokens each."""
    dtype, batch = (torch.bfloat16, 64) if device == "cuda" else (torch.float32, 2)
    ours = OpenVision3Model(OpenVision3Config.preset("base")).to(device, dtype)
    theirs = ViTModel(ViTConfig(image_size=256, hidden_act="gelu"), add_pooling_layer=False).to(device, dtype)
    latents = torch.randn(batch, 16, 32, 32, device=device, dtype=dtype)
    pixels = torch.randn(batch, 3, 256, 256, device=device, dtype=dtype)
    if device == "cuda":
        ours, theirs = torch.compile(ours), torch.compile(theirs)
    a, b = compare(lambda: ours(latents=latents).last_hidden_state.mean().backward(),
                   lambda: theirs(pixels).last_hidden_state.mean().backward(), device)  # fmt: skip
    return f"encoder base, 256 px, forward+backward: {a:.3f} s, transformers ViT-B/16 {b:.3f} s, speed {b / a:.2f}x"


def cached_step(device: str) -> str:
    """A pre-training step with cached latents and pixel_loss_fraction 1/8 against encoding online and all pixels."""
    batch = 8
    vae = flux_shaped_vae().to(device).eval()
    pixels = torch.rand(batch, 3, 64, 64, device=device) * 2 - 1
    ids = torch.randint(3, 500, (batch, 24), device=device)
    mask, latents = torch.ones_like(ids), encode(vae, pixels)
    model = OpenVision3ForPreTraining(OpenVision3PreTrainingConfig.preset("base", 512, 64)).to(device).train()

    def step(fraction: float, online: bool) -> None:
        model.config.pixel_loss_fraction = fraction
        inputs = encode(vae, pixels) if online else latents
        model(inputs, ids, mask, pixels, lambda z: decode(vae, z)).loss.backward()

    a, b = compare(lambda: step(1 / 8, False), lambda: step(1.0, True), device)
    return f"pre-training step, FLUX-shaped VAE, 64 px: cached and 1/8 {a:.2f} s, neither {b:.2f} s, speed {b / a:.2f}x"


def muon_share(device: str) -> str:
    """Muon's share of a step of the tiny encoder, and AdamW's step beside it on the same gradients."""
    batch = 32
    model = OpenVision3ForPreTraining(OpenVision3PreTrainingConfig.preset("tiny", 512, 64)).to(device).train()
    latents = torch.randn(batch, 16, 8, 8, device=device)
    ids = torch.randint(3, 500, (batch, 24), device=device)
    decaying = [name for name, value in model.named_parameters() if value.ndim > 1]
    muon = make_muon(model, decaying, 1e-6, 1e-6, 0.0, (0.9, 0.95))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def gradients() -> None:
        model.zero_grad()
        model(latents, ids, torch.ones_like(ids)).loss.backward()

    gradients()
    step, _ = compare(gradients, gradients, device)
    a, b = compare(muon.step, adamw.step, device)
    share = a / (a + step)
    return f"tiny step of {batch}: gradients {step:.2f} s, Muon {a:.2f} s ({share:.0%} of the step), AdamW {b:.3f} s"


def _caption_peak(chunked: bool) -> float:
    hidden = torch.randn(64, 64, 512, requires_grad=True)
    head, labels = torch.nn.Linear(512, 32000, bias=False), torch.randint(0, 32000, (64, 64))
    reset_peak()
    before = peak_megabytes()
    if chunked:
        caption_loss(hidden, head, labels).backward()
    else:
        F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten()).backward()
    return peak_megabytes() - before


def caption_memory(device: str) -> str:
    """Peak memory of the caption head and loss at 32,000 words, chunked against plain, a process each."""
    chunked, plain = (in_own_process(_caption_peak, chunked) for chunked in (True, False))
    return f"caption head and loss: {chunked:.0f} MB chunked, {plain:.0f} MB plain, {chunked / plain - 1:+.0%}"


def _anonymous_megabytes() -> float:
    """Memory of this process that no file backs: pages of a memory map are the system's to drop."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def _cache_peaks(count: int) -> tuple[float, float]:
    """Peak memory above the start of writing, then of reading in random order, a cache of `count` pictures of 64 px."""
    vae, file = tiny_vae(), io.BytesIO()
    Image.effect_noise((64, 64), 60).save(file, "PNG")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        for name, pictures in (("warm", 1000), ("shards", count)):  # the VAE's own memory is not the question
            samples = ({"__key__": f"{i:06d}", "png": file.getvalue(), "txt": b"noise"} for i in range(pictures))
            write_shards(Path(folder) / name, samples)
        cache_latents(ImageTextStream(Path(folder) / "warm"), vae, 64, Path(folder) / "first", shard_size=250)
        reset_peak()
        before = peak_megabytes()
        cache_latents(ImageTextStream(Path(folder) / "shards"), vae, 64, cache, shard_size=250)
        writing = peak_megabytes() - before
        before = _anonymous_megabytes()
        pairs, peak = CachedPairs(LatentCache([cache]), seed=0), before
        for number, index in enumerate(torch.randperm(count).tolist()):
            pairs[index]
            if number % 50 == 0:
                peak = max(peak, _anonymous_megabytes())
        return writing, peak - before


def cache_memory(device: str) -> str:
    """Peak memory of writing and of reading a latent cache at two sizes, a process each."""
    lines = []
    for count in (1000, 4000):
        writing, reading = in_own_process(_cache_peaks, count)
        size = count * (64 * 64 * 3 + 2 * 16 * 8 * 8) / 1e6
        lines.append(f"{count} pictures ({size:.0f} MB): writing {writing:.1f} MB, reading {reading:.1f} MB")
    return f"latent cache, peak memory above the start: {'; '.join(lines)}"


def _real_size() -> list[float]:
    times, vae, settings = [], flux_shaped_vae().eval(), dict(DECODER_PRESETS["base"])

    def timed(call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        return result

    model = OpenVision3Autoencoder.from_frozen_encoder(
        OpenVision3Model(OpenVision3Config.preset("base")), LatentDecoder(768, 16, 2, **settings), settings, vae
    )
    tokens = timed(lambda: model.encode(torch.rand(1, 3, 256, 256) * 2 - 1))
    timed(lambda: model.decode(tokens))
    del model
    model = OpenVision3ForPreTraining(OpenVision3PreTrainingConfig.preset("base", 32000, 128)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    latents, pixels = torch.randn(2, 16, 16, 16), torch.rand(2, 3, 128, 128) * 2 - 1
    ids = torch.randint(3, 32000, (2, 128))

    def step() -> None:
        model(latents, ids, torch.ones_like(ids), pixels, lambda latents: decode(vae, latents)).loss.backward()
        optimizer.step()

    timed(step)
    return [*times, peak_megabytes() / 1024]


def real_size(device: str) -> str:
    """FLUX-shaped VAE, base encoder and decoder: encode and decode at 256 px, a training step of 2 at 128 px, once."""
    encoding, decoding, training, peak = in_own_process(_real_size)
    return (
        f"FLUX-shaped VAE, base encoder and decoder on the CPU: 256 px encoded in {encoding:.1f} s, decoded in "
        f"{decoding:.1f} s; a step of 2 pictures at 128 px with pixel loss {training:.1f} s; peak {peak:.1f} GiB"
    )


def loader(device: str) -> str:
    """Pictures read and decoded from shards against the bare webdataset loop with the same decoding."""
    import webdataset

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), "train", count=2000, size=128)
        stream, tar = ImageTextStream(Path(folder) / "train"), str(Path(folder) / "train/shards/00000.tar")

        def ours() -> None:
            for _ in stream.pairs():
                pass

        def theirs() -> None:
            for sample in webdataset.WebDataset(tar, shardshuffle=False):
                Image.open(io.BytesIO(sample["png"])).convert("RGB")
                sample["json"].decode()

        a, b = compare(ours, theirs, "cpu")
    return f"loader: {2000 / a:.0f} pictures/s, bare webdataset {2000 / b:.0f}, {b / a:.0%} of it"


ROWS = [encoder_against_vit, cached_step, muon_share, caption_memory, real_size, cache_memory, loader]
