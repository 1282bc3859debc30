"""The multimodal objective on a device that is not the CPU, and what it refuses."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from mllm.conversation import IGNORED
from mllm.objective import MultimodalObjective
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
