"""Folders in bfloat16: what learns is float32, whatever is frozen beside it, and small steps count."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from mllm.conversation import IGNORED
from mllm.objective import MultimodalObjective
from mllm.train import main as train
from training.modules import learn_in_float32, set_trainable


def _batch(model, text_only=False):
    torch.manual_seed(0)
    ids = torch.randint(4, 300, (2, 12))
    if not text_only:
        ids[:, 2:6] = model.config.image_token_id
    images = torch.randn(1 if text_only else 2, 3, 32, 32)
    labels = ids.masked_fill(torch.arange(12) < 8, IGNORED)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "images": images}


def _objective(folder, dtype, trainable):
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    objective = MultimodalObjective(model, cached=False)
    set_trainable(objective, trainable)
    learn_in_float32(objective)
    return model, objective


@pytest.mark.parametrize("text_only", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("trainable", [["connector"], ["connector", "llm"], ["connector", "llm", "head"]])
def test_float32_and_bfloat16_parts_compute_together(family, trainable, autocast, text_only):
    model, objective = _objective(family / "mllm", torch.bfloat16, trainable)
    dtypes = {name: value.dtype for name, value in objective.named_parameters()}
    assert all((dtypes[name] == torch.float32) == name.startswith(tuple(trainable)) for name in dtypes)
    batch = _batch(model, text_only)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = objective(**batch)["loss"]
    loss.backward()
    _, whole = _objective(family / "mllm", torch.float32, trainable)
    expected = whole(**batch)["loss"]
    expected.backward()
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected, rtol=0.01)
    gradients = dict(whole.named_parameters())
    for name, value in objective.named_parameters():
        if value.requires_grad:
            assert value.grad.dtype == torch.float32
            difference = (value.grad - gradients[name].grad).norm()
            assert difference <= 0.1 * gradients[name].grad.norm() + 1e-5, name


def test_a_step_too_small_for_bfloat16_is_kept(family):
    model, objective = _objective(family / "mllm", torch.bfloat16, ["connector"])
    before = objective.connector.linear_1.weight.detach().clone()
    optimizer = torch.optim.AdamW(objective.connector.parameters(), lr=1e-6, weight_decay=0.0)
    objective(**_batch(model))["loss"].backward()
    optimizer.step()
    after = objective.connector.linear_1.weight.detach()
    assert (after != before).float().mean() > 0.9
    assert (after.bfloat16() != before.bfloat16()).float().mean() < 0.1  # what a bfloat16 connector would have kept


def test_a_folder_keeps_its_dtype_and_is_loaded_once(family, arguments, tmp_path, monkeypatch):
    loaded = []
    load = LlavaForConditionalGeneration.from_pretrained
    load(family / "mllm", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    for file in (family / "mllm").iterdir():
        if not (tmp_path / "base" / file.name).exists():
            (tmp_path / "base" / file.name).write_bytes(file.read_bytes())

    def counted(*args, **kwargs):
        loaded.append(args)
        return load(*args, **kwargs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", counted)
    train(arguments("out", f"init_from={tmp_path / 'base'}", "trainable=[connector]", "trainer.bf16=true"))
    assert len(loaded) == 1
    assert {value.dtype for value in load(tmp_path / "out").parameters()} == {torch.bfloat16}
