"""RAE's own numbers: same weights, same velocity, same samples."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from generator import DiTDHTransformer2DModel, rae_timesteps, sample

GOLDEN = Path(__file__).parents[1] / "golden" / "ditdh"
CONFIG = json.loads((GOLDEN / "config.json").read_text())


@pytest.fixture(scope="module")
def model():
    return DiTDHTransformer2DModel.from_rae(GOLDEN)


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "expected.safetensors")


def run(model, expected, **options):
    timesteps = rae_timesteps(CONFIG["sampler"]["num_steps"], CONFIG["sampler"]["time_dist_shift"])
    return sample(model, expected["noise"], timesteps, class_labels=expected["sample_labels"], **options)


def test_velocity(model, expected):
    with torch.no_grad():
        velocity = model(hidden_states=expected["x"], timestep=expected["t"], class_labels=expected["y"]).sample
    assert (velocity - expected["velocity"]).abs().max() < 1e-5


def test_samples(model, expected):
    cfg = CONFIG["sampler"]["cfg"]
    weak = DiTDHTransformer2DModel.from_rae(GOLDEN, "weak_model.safetensors", **CONFIG["weak_model"])
    runs = {
        "sample_no_guidance": {},
        "sample_cfg": {"guidance_scale": cfg["scale"], "guidance_interval": tuple(cfg["interval"])},
        "sample_autoguidance": {
            "guidance_scale": CONFIG["sampler"]["autoguidance"]["scale"], "guidance_transformer": weak,
        },
    }  # fmt: skip
    for name, options in runs.items():
        assert (run(model, expected, **options) - expected[name]).abs().max() < 1e-4, name


def test_yaml_and_pt_with_ema_load_too(tmp_path, model, expected):
    state = load_file(GOLDEN / "model.safetensors")
    torch.save({"ema": state, "step": 3}, tmp_path / "stage2_model.pt")
    torch.save({"mean": torch.ones(32, 4, 4), "var": torch.full((32, 4, 4), 4.0)}, tmp_path / "stat.pt")
    (tmp_path / "DiTDH.yaml").write_text(yaml.safe_dump({"stage_2": {"params": CONFIG["model"]}}))
    other = DiTDHTransformer2DModel.from_rae(tmp_path, weights="stage2_model.pt")
    with torch.no_grad():
        velocity = other(hidden_states=expected["x"], timestep=expected["t"], class_labels=expected["y"]).sample
    assert (velocity - expected["velocity"]).abs().max() < 1e-5
    assert torch.allclose(other.normalize(torch.full((1, 32, 4, 4), 3.0)), torch.ones(()), atol=1e-5)


def test_saved_again_it_is_the_same(tmp_path, model, expected):
    model.save_pretrained(tmp_path)
    again = DiTDHTransformer2DModel.from_pretrained(tmp_path)
    for (name, first), (_, second) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(first, second), name
    with torch.no_grad():
        velocity = again(hidden_states=expected["x"], timestep=expected["t"], class_labels=expected["y"]).sample
    assert (velocity - expected["velocity"]).abs().max() < 1e-5


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="Unknown override width: "):
        DiTDHTransformer2DModel.from_rae(GOLDEN, width=3)
    with pytest.raises(ValueError, match="wo_shift"):
        DiTDHTransformer2DModel.from_rae(GOLDEN, wo_shift=True)
    with pytest.raises(FileNotFoundError, match="name RAE's weights"):
        DiTDHTransformer2DModel.from_rae(GOLDEN, "missing.safetensors")
    shutil.copy(GOLDEN / "model.safetensors", tmp_path)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        DiTDHTransformer2DModel.from_rae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": {**CONFIG["model"], "depht": [1, 1]}}))
    with pytest.raises(ValueError, match="depht"):
        DiTDHTransformer2DModel.from_rae(tmp_path)
