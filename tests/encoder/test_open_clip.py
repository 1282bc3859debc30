"""Released checkpoints: the authors' own numbers, bit-equal round trips, and a sentence for everything odd."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encoder import OpenVision3Model, inspect
from encoder.open_clip import CONFIG_FILE, PICKLE_FILE, key_table

GOLDEN = Path(__file__).parents[1] / "golden" / "openvision3"
CASES = ("tokens_unnormed", "tokens_normed")


@pytest.fixture
def checkpoint(tmp_path):
    """A writable copy of a golden checkpoint: its folder, its weights, and `save(weights)`, `set(key, value)`."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "tokens_unnormed", folder)

    class Checkpoint:
        path = folder
        weights = torch.load(folder / PICKLE_FILE, weights_only=True)

        def save(self, weights):
            torch.save(weights, folder / PICKLE_FILE)

        def set(self, key, value):
            config = json.loads((folder / CONFIG_FILE).read_text())
            config["model_cfg"]["vision_cfg"][key] = value
            (folder / CONFIG_FILE).write_text(json.dumps(config))

    return Checkpoint()


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_pooled_agree_with_the_authors(case):
    expected = load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        output = OpenVision3Model.from_open_clip(GOLDEN / case)(latents=expected["latents"])
    torch.testing.assert_close(output.last_hidden_state, expected["tokens"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.pooler_output, expected["pooled"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_is_bit_equal(case, tmp_path):
    OpenVision3Model.from_open_clip(GOLDEN / case).save_open_clip(tmp_path)
    assert (tmp_path / CONFIG_FILE).read_text() == (GOLDEN / case / CONFIG_FILE).read_text()
    ours, theirs = (torch.load(folder / PICKLE_FILE, weights_only=True) for folder in (tmp_path, GOLDEN / case))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(position_table=True, projection_dim=12),
        dict(final_ln_after_pool=False, patch_size=8, latent_channels=4),
        dict(intermediate_size=29, hidden_size=100, num_attention_heads=5),
    ],
)
def test_any_of_our_encoders_survives_the_layout(small_encoder, settings, tmp_path):
    model = small_encoder(**settings)
    model.save_open_clip(tmp_path)
    latents = torch.randn(2, model.config.latent_channels, 8, 8)
    with torch.no_grad():
        for name, ours in model(latents=latents).items():
            theirs = OpenVision3Model.from_open_clip(tmp_path)(latents=latents)[name]
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_normalised_tokens_have_no_place_in_the_layout(small_encoder, tmp_path):
    with pytest.raises(ValueError, match="normalize_tokens"):
        small_encoder(normalize_tokens=True).save_open_clip(tmp_path)


def test_safetensors_and_a_visual_prefix_are_read(checkpoint):
    (checkpoint.path / PICKLE_FILE).unlink()
    weights = {f"visual.{key}": value.contiguous() for key, value in checkpoint.weights.items()}
    save_file(weights, checkpoint.path / "open_clip_model.safetensors")
    state = OpenVision3Model.from_open_clip(checkpoint.path).state_dict()
    assert all(torch.equal(state[ours], checkpoint.weights[theirs]) for ours, theirs in key_table(2).items())


def test_strides_of_transposed_kernels_do_not_matter(checkpoint):
    checkpoint.save(
        {key: value.T.contiguous().T if value.ndim == 2 else value for key, value in checkpoint.weights.items()}
    )
    OpenVision3Model.from_open_clip(checkpoint.path).save_open_clip(checkpoint.path / "again")
    again = torch.load(checkpoint.path / "again" / PICKLE_FILE, weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in checkpoint.weights.items())


def test_without_a_vae_only_latents_are_taken_and_with_one_pictures_too(checkpoint, small_vae):
    pixel_values = torch.rand(1, 3, 64, 64) * 2 - 1
    with pytest.raises(ValueError, match="no VAE.*latents="):
        OpenVision3Model.from_open_clip(checkpoint.path)(pixel_values=pixel_values)
    model = OpenVision3Model.from_open_clip(checkpoint.path, vae=small_vae)
    assert model(pixel_values=pixel_values).last_hidden_state.shape == (1, 16, 64)
    model.save_open_clip(checkpoint.path / "again")
    again = torch.load(checkpoint.path / "again" / PICKLE_FILE, weights_only=True)
    assert again.keys() == checkpoint.weights.keys()


@pytest.mark.parametrize("key", ["proj", "transformer.resblocks.1.mlp.c_proj.bias", "positional_embedding"])
def test_a_missing_weight_is_named(checkpoint, key):
    checkpoint.save({name: value for name, value in checkpoint.weights.items() if name != key})
    with pytest.raises(ValueError, match=f"lacks weight {key} "):
        OpenVision3Model.from_open_clip(checkpoint.path)


@pytest.mark.parametrize("key", ["transformer.resblocks.2.ln_1.weight", "logit_scale", "visual.proj"])
def test_an_unknown_weight_is_named(checkpoint, key):
    checkpoint.save({**checkpoint.weights, key: torch.zeros(64)})
    with pytest.raises(ValueError, match=f"unknown weight {key} "):
        OpenVision3Model.from_open_clip(checkpoint.path)


@pytest.mark.parametrize("ours, theirs", key_table(1).items())
def test_a_wrong_shape_of_any_weight_is_named(checkpoint, ours, theirs):
    checkpoint.save({**checkpoint.weights, theirs: torch.zeros(3, 5)})
    with pytest.raises(ValueError, match=f"weight {theirs} of shape .3, 5. and"):
        OpenVision3Model.from_open_clip(checkpoint.path)


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("rope", True, "vision_cfg.rope, which this encoder does not know"),
        ("no_ln_pre", False, "vision_cfg.no_ln_pre = False"),
        ("pool_type", "tok", "vision_cfg.pool_type = 'tok'"),
        ("ls_init_value", 1e-5, "vision_cfg.ls_init_value"),
        ("attentional_pool", True, "vision_cfg.attentional_pool"),
        ("timm_model_name", "vit", "vision_cfg.timm_model_name"),
        ("image_size", [8, 16], "image_size = .8, 16."),
        ("layers", 2.5, "layers = 2.5"),
        ("layers", 3, "lacks weight transformer.resblocks.2"),
        ("image_size", 16, "positional_embedding of shape .17, 64. .* says .65, 64."),
    ],
)
def test_an_option_of_another_architecture_is_named(checkpoint, key, value, says):
    checkpoint.set(key, value)
    with pytest.raises(ValueError, match=says):
        OpenVision3Model.from_open_clip(checkpoint.path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_refused(checkpoint, tmp_path):
    code = Malicious(tmp_path / "ran")
    torch.save({**checkpoint.weights, "proj": code}, checkpoint.path / PICKLE_FILE)
    with pytest.raises(ValueError, match="open_clip_pytorch_model.bin cannot be read as plain tensors"):
        OpenVision3Model.from_open_clip(checkpoint.path)
    (checkpoint.path / PICKLE_FILE).write_bytes(pickle.dumps(code, protocol=2))
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        OpenVision3Model.from_open_clip(checkpoint.path)
    assert not code.path.exists()


def test_damaged_and_missing_files_are_named(checkpoint):
    whole = (checkpoint.path / PICKLE_FILE).read_bytes()
    for damaged in (b"", whole[:1000], b"<html>not found</html>"):
        (checkpoint.path / PICKLE_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read as plain tensors"):
            OpenVision3Model.from_open_clip(checkpoint.path)
    (checkpoint.path / PICKLE_FILE).unlink()
    with pytest.raises(ValueError, match="no weights in"):
        OpenVision3Model.from_open_clip(checkpoint.path)
    (checkpoint.path / CONFIG_FILE).write_text('{"model_cfg": 3}')
    with pytest.raises(ValueError, match="not an open_clip config"):
        OpenVision3Model.from_open_clip(checkpoint.path)
    (checkpoint.path / CONFIG_FILE).unlink()
    with pytest.raises(ValueError, match=f"no {CONFIG_FILE}"):
        OpenVision3Model.from_open_clip(checkpoint.path)
    with pytest.raises(ValueError, match="There is no folder"):
        OpenVision3Model.from_open_clip("/not/here")


def test_inspect_says_what_a_checkpoint_holds(capsys):
    inspect.main([str(GOLDEN / "tokens_normed")])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    lines = {key: value.strip() for key, value in lines.items()}
    assert lines["tokens normalised"] == "yes"
    assert lines["proj"] == "64 x 48, not the identity"
    assert "only 4 x 4 grids" in lines["positions"]
    assert lines["measured on"] == "8 random latents"


def test_inspect_knows_identity_fixed_positions_and_pictures(small_encoder, small_vae, tmp_path, capsys):
    model = small_encoder(position_table=True).attach_vae(small_vae)
    with torch.no_grad():
        model.proj.copy_(torch.eye(32))
    model.save_pretrained(tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "broken.png").write_text("no picture")
    with pytest.raises(ValueError, match="no readable picture"):
        inspect.main([str(tmp_path / "model"), "--pictures", str(pictures)])
    Image.new("RGB", (40, 20), "red").save(pictures / "red.png")
    capsys.readouterr()
    inspect.main([str(tmp_path / "model"), "--pictures", str(pictures)])
    out = capsys.readouterr().out
    assert "32 x 32, the identity" in out and "any grid works" in out and "1 pictures, 1 other files skipped" in out


def test_inspect_advises_by_scale_and_outliers():
    tokens = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(0))
    for image_tokens, normalised, advice in (
        (tokens, True, "raw"),
        (tokens, False, "layernorm"),
        (9 * tokens, True, "layernorm"),
        (tokens * torch.ones(64).index_fill(0, torch.tensor([5]), 30.0), True, "statistics"),
    ):
        report = inspect.inspect_tokens(image_tokens, normalised)
        assert report["advised noise_space"].split()[0] == advice
    assert report["outlier channels"].startswith("5 (") and report["number of outlier channels"] == 1
