"""mllm.train in two processes: text beside pictures; ZeRO-2 and ZeRO-3 train, save, go on from a checkpoint, export."""

import json
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from mllm import ChatModel
from mllm.objective import MultimodalObjective
from mllm.train import main as train
from tests.processes import ROOT, launch


def _launch(arguments):
    launch("mllm.train", arguments, processes=2)


def _weights(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder).state_dict()


def _moved(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def _text_beside_pictures(folder):
    """Overrides with which the first process sees text alone and the second pictures alone."""
    rows = json.loads((folder / "rows.json").read_text())
    text, pictures = rows[6:], rows[:4]
    (folder / "mixed.json").write_text(json.dumps([*text * 4, *pictures]))
    return [f"data={folder / 'mixed.json'}", "trainer.train_sampling_strategy=sequential"]


def test_a_process_that_sees_text_alone_keeps_step_with_one_that_sees_pictures(arguments, tmp_path):
    sgd = ["trainable=[connector,llm,head]", "trainer.optim=sgd", "trainer.learning_rate=0.1", "trainer.max_steps=3"]
    _launch(arguments("two", *sgd, *_text_beside_pictures(tmp_path)))
    train(arguments("one", *sgd, *_text_beside_pictures(tmp_path), "trainer.gradient_accumulation_steps=2"))
    one, two = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name


def test_the_picture_in_a_text_batch_changes_no_gradient(family):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    ids = torch.randint(4, 300, (2, 9))
    mask = torch.ones_like(ids)
    model(input_ids=ids, labels=ids, attention_mask=mask).loss.backward()
    without = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    model.model.vision_tower.requires_grad_(False)
    MultimodalObjective(model, cached=False)(ids, ids, mask, torch.randn(1, 3, 32, 32))["loss"].backward()
    for name, value in model.named_parameters():
        if "vision_tower" in name:
            assert value.grad is None
        elif "multi_modal_projector" in name:
            assert without[name] is None and value.grad.eq(0).all()
        else:
            assert torch.allclose(value.grad, without[name], atol=1e-6), name


def _zero(stage):
    return f"trainer.deepspeed={ROOT / 'training' / 'deepspeed' / f'zero{stage}.json'}"


def _trains_and_goes_on(command, out):
    """The weights of a training that was not interrupted, and equal ones from one that went on at step 2."""
    _launch([*command, "trainer.save_steps=2", "trainer.save_total_limit=2"])
    whole = _weights(out)
    (out / "model.safetensors").unlink()
    shutil.rmtree(out / "checkpoint-4")
    _launch([*command, "trainer.save_steps=2", "trainer.save_total_limit=2"])
    assert not _moved(whole, _weights(out))
    return whole


def test_stage_one_under_zero2_saves_nothing_frozen_and_goes_on(family, arguments, tmp_path):
    before = _weights(family / "mllm")
    after = _trains_and_goes_on(arguments("out", _zero(2), "trainable=[connector]"), tmp_path / "out")
    moved = _moved(before, after)
    assert moved and all("multi_modal_projector" in name for name in moved)
    with safe_open(tmp_path / "out" / "checkpoint-4" / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("connector.") for name in file.keys())
    frozen = 4 * sum(value.numel() for name, value in before.items() if "language_model" in name)
    for path in (tmp_path / "out" / "checkpoint-4").rglob("*"):
        assert path.stat().st_size < frozen / 2, path


def test_stage_two_under_zero3_in_bfloat16_goes_on_and_exports_the_whole(family, arguments, tmp_path):
    command = arguments(
        "out",
        _zero(3),
        "trainable=[connector,llm,head]",
        "trainer.bf16=true",
        "trainer.activation_checkpointing=true",
        *_text_beside_pictures(tmp_path),
    )
    after = _trains_and_goes_on(command, tmp_path / "out")
    moved = _moved(_weights(family / "mllm"), after)
    assert any("language_model" in name for name in moved) and not any("vision_tower" in name for name in moved)
    names = [set(load_file(folder / "model.safetensors")) for folder in (family / "mllm", tmp_path / "out")]
    assert names[0] == names[1]  # other readers than transformers know these alone
    model = ChatModel.from_pretrained(tmp_path / "out", max_new_tokens=2)
    assert isinstance(model.chat([{"role": "user", "content": "what color?"}]), str)
