"""The commands on pictures of any shape, for every kind of encoder's folder."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

from encoder import OpenVision3Autoencoder, OpenVision3AutoencoderConfig
from encoder.caption import main as caption
from encoder.commands import grid_of
from encoder.embed import main as embed
from encoder.evaluate import main as evaluate
from encoder.inspect import main as inspect
from encoder.reconstruct import main as reconstruct


@pytest.fixture(scope="module")
def folders(family, tmp_path_factory):
    """One encoder as whole/ (with text towers), encoder/ (VAE inside), released/, bare/ (no text); vae/; pictures."""
    root = tmp_path_factory.mktemp("commands")
    shutil.copytree(family / "autoencoder", root / "whole")
    shutil.copytree(family / "tokenizer", root / "whole" / "tokenizer")
    whole = OpenVision3Autoencoder.from_pretrained(root / "whole")
    whole.encoder.save_open_clip(root / "released")
    whole.vae.save_pretrained(root / "vae")
    config = {**whole.config.to_dict(), "text": None}
    bare = OpenVision3Autoencoder(OpenVision3AutoencoderConfig(**config))
    state = whole.state_dict()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    bare.save_pretrained(root / "bare")
    whole.encoder.attach_vae(whole.vae).save_pretrained(root / "encoder")
    rng = np.random.default_rng(0)
    for name, width, height in (("square", 40, 40), ("wide", 128, 32)):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{name}.png")
    return root


def features(file):
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor("image_features"), json.loads(opened.metadata()["pictures"])


@pytest.mark.parametrize(
    "width, height, grid",
    [(100, 100, (16, 16)), (400, 100, (8, 32)), (100, 225, (24, 11)), (40_000, 1, (1, 256)), (1, 40_000, (256, 1))],
)
def test_a_grid_keeps_shape_and_area(width, height, grid):
    assert grid_of(width, height, image_size=256, patch_size=16) == grid


def test_every_kind_of_folder_embeds_alike(folders, tmp_path):
    pictures = [str(folders / "square.png"), str(folders / "wide.png")]
    results = []
    for name, vae in (("whole", []), ("encoder", []), ("released", ["--vae", str(folders / "vae")])):
        out = tmp_path / f"{name}.safetensors"
        embed([*pictures, "--model", str(folders / name), *vae, "--out", str(out), "--keep-aspect"])
        vectors, names = features(out)
        assert names == pictures
        results.append(vectors)
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)
    model = OpenVision3Autoencoder.from_pretrained(folders / "whole")
    wide = Image.open(folders / "wide.png").resize((64, 16), Image.Resampling.BICUBIC)
    pixel_values = torch.from_numpy(np.array(wide)).permute(2, 0, 1)[None] / 127.5 - 1.0
    tokens = model.encode(pixel_values)
    assert tokens.shape[1] == 1 * 4
    torch.testing.assert_close(results[0][1:], F.normalize(model.pool(tokens), dim=-1))


def test_reconstructions_have_the_pictures_shape(folders, tmp_path, capsys):
    arguments = ["--model", str(folders / "bare"), "--out", str(tmp_path), "--image-size", "64"]
    reconstruct([str(folders / "wide.png"), *arguments, "--keep-aspect"])
    pair = Image.open(tmp_path / "wide.png")
    assert pair.size == (2 * 128, 32) and "wide.png: " in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(pair)[:, :128], np.asarray(Image.open(folders / "wide.png")))
    reconstruct([str(folders / "wide.png"), *arguments])
    assert Image.open(tmp_path / "wide.png").size == (2 * 64, 64)


def test_captions_are_printed_for_any_shape(folders, capsys):
    caption(
        [str(folders / "square.png"), str(folders / "wide.png"), "--model", str(folders / "whole"), "--keep-aspect"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(folders / "square.png"), str(folders / "wide.png")]


def test_without_text_towers_reconstruction_is_measured(folders, tmp_path, capsys):
    arguments = ["--splits", "val", "--count", "2", "--image-size", "64"]
    evaluate(["--model", str(folders / "bare"), *arguments, "--out", str(tmp_path / "bare.json")])
    evaluate(["--model", str(folders / "whole"), *arguments, "--out", str(tmp_path / "whole.json")])
    bare, whole = (json.loads((tmp_path / f"{name}.json").read_text())["val"] for name in ("bare", "whole"))
    assert bare.items() <= whole.items() and "captions" in whole and "captions" not in bare
    assert bare["against_vae"]["psnr"] > 0 and bare["count"] == 2


@pytest.mark.parametrize(
    "command, model, more, says",
    [
        (reconstruct, "released", ["--out", "out"], "without a latent decoder; train one .* encoder.train_decoder"),
        (reconstruct, "encoder", ["--out", "out"], "without a latent decoder; train one .* encoder.train_decoder"),
        (caption, "bare", [], "has no text towers"),
        (embed, "released", ["--out", "out"], "has no VAE to read pictures with; name its folder by --vae"),
        (embed, "encoder", ["--out", "out", "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (embed, "encoder", ["--out", "out", "--image-size", "40"], "--image-size is 40 and must be a multiple"),
    ],
)
def test_what_cannot_be_is_one_sentence(folders, command, model, more, says):
    with pytest.raises(ValueError, match=says):
        command([str(folders / "square.png"), "--model", str(folders / model), *more])


def test_inspect_refuses_a_device_that_is_not_there(folders, capsys):
    inspect([str(folders / "released"), "--vae", str(folders / "vae"), "--pictures", str(folders), "--device", "cpu"])
    assert "2 pictures" in capsys.readouterr().out
    with pytest.raises(ValueError, match="choose cpu"):
        inspect([str(folders / "released"), "--device", "cuda:9"])
