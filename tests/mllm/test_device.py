"""The multimodal objective on a device that is not the CPU, and what it refuses."""

import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from encoder.images import to_pixel_values
from mllm.conversation import IGNORED
from mllm.data import cache_image_tokens
from mllm.objective import LanguageObjective, MultimodalObjective, tower_tokens
from tests.device import ELSEWHERE, OtherDevice, assert_same_there


def _batch(model, rows, cached, text_only=False):
    ids = torch.randint(4, 300, (rows, 12))
    if not text_only:
        ids[:, 2:6] = model.config.image_token_id
    labels = ids.masked_fill(torch.arange(12) < 8, IGNORED)
    count = 1 if text_only else rows
    images = torch.randn(count, 4, 32) if cached else torch.randn(count, 3, 32, 32)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "images": images}


@pytest.mark.parametrize(
    ("rows", "cached", "text_only"), [(2, False, False), (2, True, False), (2, False, True), (64, True, False)]
)
def test_forward_and_backward_run_where_parameters_and_inputs_are(family, rows, cached, text_only):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    model.model.vision_tower.requires_grad_(False).eval()
    objective = MultimodalObjective(model, cached)
    assert_same_there(objective, _batch(model, rows, cached, text_only))


@pytest.mark.parametrize("rows", [2, 64])
def test_the_language_objective_runs_where_its_parameters_are(family, rows):
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(family / "llm")
    batch = _batch(LlavaForConditionalGeneration.from_pretrained(family / "mllm"), rows, True, text_only=True)
    del batch["images"]
    assert_same_there(LanguageObjective(model.model, model.lm_head), batch)


def test_the_tower_fills_the_cache_where_its_pictures_are_and_the_cache_lies_here(family, tmp_path):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm").eval()
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png"} for name in ("red", "blue", "red")]
    tower = tower_tokens(model)
    here = cache_image_tokens(rows, tmp_path, lambda pictures: tower(to_pixel_values(pictures, 32)))
    with OtherDevice():
        cached = cache_image_tokens(rows, tmp_path, lambda pictures: tower(to_pixel_values(pictures, 32).to(ELSEWHERE)))
    assert next(model.model.vision_tower.parameters()).device == ELSEWHERE
    assert cached.keys() == here.keys() == {"red.png", "blue.png"}
    for name, tokens in cached.items():
        assert tokens.device.type == "cpu" and torch.allclose(tokens, here[name], atol=2e-3)  # float16


@pytest.mark.parametrize("name", ["input_ids", "labels", "attention_mask"])
def test_a_stray_cpu_tensor_fails(family, name):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    objective = MultimodalObjective(model, cached=True)
    batch = _batch(model, 2, cached=True)
    with OtherDevice(), pytest.raises(RuntimeError, match="mixes tensors|same device|device meta"):
        objective.to(ELSEWHERE)
        objective(**{key: value if key == name else value.to(ELSEWHERE) for key, value in batch.items()})


def test_a_tower_in_float32_serves_trained_parts_in_bfloat16(family):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    objective = MultimodalObjective(model, cached=False)
    batch = _batch(model, 2, cached=False)
    full = objective(**batch)["loss"]
    objective.to(torch.bfloat16)  # as DeepSpeed does, which casts the pixels too
    half = objective(**{**batch, "images": batch["images"].bfloat16()})["loss"]
    assert torch.allclose(full, half, rtol=0.02)
    assert next(model.model.vision_tower.parameters()).dtype == torch.float32


@pytest.mark.parametrize(("images", "places"), [(2, 4), (1, 8), (3, 8), (2, 0)])
def test_pictures_that_are_not_the_rows_are_refused_not_shifted(family, images, places):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    ids = torch.full((1, 12), 5)
    ids[:, :places] = model.config.image_token_id
    with pytest.raises(ValueError, match=rf"have \[{places}\] image tokens and its {images} pictures have 4 each"):
        MultimodalObjective(model, cached=True)(ids, ids, torch.ones_like(ids), torch.zeros(images, 4, 32))
