"""The paper's recipes run as written, but for paths, sizes and steps: the first stage, the second on it, one GPU's."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder import OpenVision3ForPreTraining
from encoder.cache_latents import main as cache_latents
from encoder.lpips import LPIPS
from encoder.train import main as train
from training.shards import write_shards

RECIPES = Path(__file__).parents[2] / "encoder" / "recipes"
SIZES = {32: "first", 48: "second"}
SMALL = [
    "size=tiny", "trainer.per_device_train_batch_size=2", "trainer.max_steps=1", "trainer.warmup_steps=0",
    "trainer.bf16=false", "trainer.dataloader_num_workers=0", "trainer.use_cpu=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory, small_vae, family):
    """vae/, tokenizer/, caches first/ and second/ of 16 pictures, and LPIPS weights under their published names."""
    root, rng = tmp_path_factory.mktemp("paper"), np.random.default_rng(0)
    samples = []
    for index in range(16):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(file, "PNG")
        samples.append({"__key__": str(index), "png": file.getvalue(), "txt": f"a red circle {index}".encode()})
    write_shards(root / "shards", samples)
    small_vae.save_pretrained(root / "vae")
    (root / "tokenizer").symlink_to(family / "tokenizer")
    for side, name in SIZES.items():
        source = ["--shards", f"{root}/shards", "--vae", f"{root}/vae"]
        cache_latents([*source, "--image-size", str(side), "--out", f"{root}/{name}"])
    names = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    state = {}
    for number, convolution in zip(names, LPIPS().convolutions, strict=True):
        state |= {f"features.{number}.{kind}": value for kind, value in convolution.state_dict().items()}
    torch.save(state, root / "vgg.pth")
    widths = (64, 128, 256, 512, 512)
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, width, 1, 1) for i, width in enumerate(widths)}, root / "l.pth")
    return root


def run(data, name, cache, *overrides):
    paths = [f"cache={data / cache}", f"vae={data / 'vae'}", f"tokenizer={data / 'tokenizer'}"]
    train([str(RECIPES / f"{name}.yaml"), *paths, f"output_dir={data / name}", *SMALL, *overrides])


def test_both_stages(data, capsys):
    run(data, "openvision3_base_128", "first")
    first = data / "openvision3_base_128" / "pretraining"
    lpips = [f"lpips_vgg={data}/vgg.pth", f"lpips_linear={data}/l.pth"]
    run(data, "openvision3_base_256_one_gpu", "second", f"init_from={first}", *lpips)
    model = OpenVision3ForPreTraining.from_pretrained(data / "openvision3_base_256_one_gpu" / "pretraining")
    assert model.config.encoder["image_size"] == 48 and model.config.lpips_weight == 0.5
    capsys.readouterr()
    run(data, "openvision3_base_128_one_gpu", "first", "dry_run=true")
    assert "batch pixels: [2, 3, 32, 32]" in capsys.readouterr().out
    assert Image.open(data / "openvision3_base_128_one_gpu" / "dry_run.png").size == (64, 32)
    with pytest.raises(ValueError, match="no file checkpoints/lpips/vgg16-397923af.pth"):
        run(data, "openvision3_base_224", "second", f"init_from={first}")
