"""The generator on a device that is not the CPU, see tests/device.py: its objective, drawing, editing, re-ranking."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from generator import OpenVision3Pipeline
from generator.edit_studies import inpaint_case, interpolate_case, rerank_case
from generator.features import ShapesClassifier, extract, load_features
from generator.objective import FlowObjective
from generator.text import states_width
from tests.device import ELSEWHERE, OtherDevice, assert_same_there, there

ROWS = 3


def batch(**what):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(5) < torch.tensor([[5], [1], [3]])).long()
    choices = {
        "image_tokens": torch.randn(ROWS, 16, 192, generator=generator),
        "latents": torch.randn(ROWS, 16, 8, 8, generator=generator),
        "input_ids": torch.randint(3, 15, (ROWS, 5), generator=generator) * mask,
        "encoder_hidden_states": torch.randn(ROWS, 5, 384, generator=generator),
        "class_labels": torch.tensor([0, 2, 1]),
        "attention_mask": mask,
    }
    return {
        "timestep": torch.rand(ROWS, generator=generator),
        "noise": torch.randn(ROWS, 16, 192, generator=generator),
        **{name: choices[name] for name in what},
    }


CACHED = dict(image_tokens=1, encoder_hidden_states=1, attention_mask=1)
ONLINE = dict(latents=1, input_ids=1, attention_mask=1)
CLASSES = dict(image_tokens=1, class_labels=1)


@pytest.mark.parametrize("what", [CACHED, ONLINE, CLASSES], ids=["cached", "online", "classes"])
def test_the_flow_objective(what, autoencoder, make_transformer):
    width = states_width(autoencoder.text_encoder)
    transformer = make_transformer(**(dict(num_classes=4) if what is CLASSES else dict(text_hidden_size=width)))
    text = None if what is CLASSES else autoencoder.text_encoder
    objective = FlowObjective(transformer, 1.5, autoencoder, text)
    try:
        assert_same_there(objective, batch(**what), atol=1e-5)
    finally:
        autoencoder.to("cpu")


@pytest.mark.parametrize("name", ["timestep", "noise", "image_tokens", "encoder_hidden_states", "attention_mask"])
def test_a_stray_cpu_tensor_fails(name, autoencoder, make_transformer):
    transformer = make_transformer(text_hidden_size=states_width(autoencoder.text_encoder))
    objective = FlowObjective(transformer, 1.5, autoencoder, autoencoder.text_encoder)
    with OtherDevice(), pytest.raises(RuntimeError, match="mixes tensors|same device|device meta"):
        objective.to(ELSEWHERE)
        objective(**{key: value if key == name else there(value) for key, value in batch(**CACHED).items()})


def test_features(tmp_path):
    torch.manual_seed(0)
    save_file(ShapesClassifier().state_dict(), tmp_path / "features.safetensors")
    pictures = np.random.default_rng(0).integers(256, size=(3, 80, 80, 3), dtype=np.uint8)
    here = extract(load_features(tmp_path / "features.safetensors"), pictures)
    with OtherDevice():
        elsewhere = extract(load_features(tmp_path / "features.safetensors", ELSEWHERE), pictures)
    assert here.std() > 0 and torch.allclose(elsewhere, here, atol=1e-5)


def test_drawing_editing_and_reranking(pipeline, monkeypatch):
    monkeypatch.setattr("generator.edit_studies.prompt_at", lambda *given: (None, "a red circle left of a blue square"))
    elsewhere = OpenVision3Pipeline(**copy.deepcopy(pipeline.components))
    elsewhere.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0}
    for case, more in ((rerank_case, {"candidates": 2}), (inpaint_case, {}), (interpolate_case, {})):
        here = case(pipeline, 0, "val", 0, **more, **options)
        with OtherDevice():
            elsewhere.to(ELSEWHERE)
            there_too = case(elsewhere, 0, "val", 0, **more, **options)
        assert here.keys() == there_too.keys()
        for name in here:
            if "seconds" not in name:
                expected = pytest.approx(here[name], abs=1e-3) if name in ("caption", "fidelity") else here[name]
                assert there_too[name] == expected, name
