"""The family that ships: packed once, assembled whole, refused when its parts do not belong together."""

import os
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from demo.app import Family, build_app, main
from demo.assemble import KEPT, assembled, family_hash
from demo.evaluate_outside import auroc, measure
from demo.family import WEIGHTS, FamilyError
from demo.outside import Outside
from encoder import OpenVision3Autoencoder
from generator import OpenVision3Pipeline
from mllm import ChatModel

QUESTION = [{"role": "user", "content": "what color is the circle?"}]


def test_the_assembled_family_is_the_exported_one_after_float16(run, checkpoints, own_cache):
    folder = assembled(checkpoints)
    before = OpenVision3Autoencoder.from_pretrained(run / "encoder" / "autoencoder").state_dict()
    after = OpenVision3Autoencoder.from_pretrained(folder / "autoencoder").state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value.half().float(), after[name]), name
    first, second = (ChatModel.from_pretrained(path / "mllm").model.state_dict() for path in (run, folder))
    for name, value in first.items():
        assert torch.equal(value.half().float(), second[name]), name
    first, second = (OpenVision3Pipeline.from_pretrained(path / "generator") for path in (run, folder))
    assert torch.equal(second.transformer.state_dict()["token_mean"], first.transformer.token_mean.half().float())
    assert second.scheduler.config == first.scheduler.config


def test_assembly_happens_once_and_leaves_nothing_half_done(checkpoints, own_cache):
    folder = assembled(checkpoints)
    stamp = (folder / "mllm" / "config.json").stat().st_mtime_ns
    assert assembled(checkpoints) == folder
    assert (folder / "mllm" / "config.json").stat().st_mtime_ns == stamp
    assert [path for path in folder.parent.iterdir()] == [folder]


def test_the_cache_keeps_the_families_used_last(checkpoints, own_cache):
    root = assembled(checkpoints).parent
    others = [root / f"{number:016x}" for number in range(KEPT)]
    for number, other in enumerate(others):
        other.mkdir()
        os.utime(other, (number, number))
    own = shutil.copytree(checkpoints, own_cache / "own")
    (own / "llm" / "config.json").write_text((own / "llm" / "config.json").read_text() + "\n")
    new = assembled(own)
    assert set(root.iterdir()) == {new, assembled(checkpoints), *others[2:]}


def test_every_file_of_the_family_counts(checkpoints, own_cache):
    own = shutil.copytree(checkpoints, own_cache / "own")
    names = [family_hash(own)]
    for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "llm/config.json"):
        (own / name).write_text((own / name).read_text() + "\n")
        names.append(family_hash(own))
    assert len(set(names)) == len(names) and assembled(own).name == names[-1]


def test_every_weight_ships_as_float16(checkpoints):
    for name in WEIGHTS.values():
        with safe_open(checkpoints / name, framework="pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert "F32" not in kinds, name


def test_a_mixed_family_is_refused(checkpoints, tmp_path, own_cache):
    mixed = tmp_path / "mixed"
    shutil.copytree(checkpoints, mixed)
    path = mixed / WEIGHTS["vae"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FamilyError, match="encoder.*trained on vae.*export"):
        assembled(mixed)
    (mixed / WEIGHTS["connector"]).unlink()
    with pytest.raises(FamilyError, match="no connector.safetensors"):
        assembled(mixed)


def test_a_missing_folder_is_one_sentence(tmp_path, own_cache):
    with pytest.raises(FamilyError, match="nowhere has no vae"):
        main(["--checkpoints", str(tmp_path / "nowhere")])


@pytest.fixture()
def loaded(checkpoints, own_cache):
    return Family.load(checkpoints)


def test_the_demo_answers_draws_and_reconstructs(loaded, picture):
    answers = list(loaded.answer("what color is the circle?", picture))
    assert answers and answers[-1].strip() == loaded.chat.chat(QUESTION, [picture])
    drawings = loaded.draw("a red circle", 2, 3, 4, 2.0)
    assert [drawing.size for drawing in drawings] == [(32, 32)] * 2
    alone = loaded.draw("a red circle", 1, 3, 4, 2.0)[0]
    # The noise is the same to the bit (test_flow.py); two pictures are summed in another order than one, as the CPU's
    # BLAS decides, and a value that falls on the border between two of 256 levels may round to either.
    levels = [np.asarray(drawing, dtype=int) for drawing in (alone, *drawings)]
    assert abs(levels[0] - levels[1]).max() <= 1 < abs(levels[1] - levels[2]).max()
    before, after, text = loaded.reconstruct(picture)
    assert before.size == after.size == (32, 32) and "dB" in text
    assert build_app(loaded).title == "OpenVision 3"


def test_an_empty_prompt_is_refused(loaded):
    with pytest.raises(ValueError, match="prompt is empty"):
        loaded.draw("  ", 1, 0, 4, 2.0)


def test_outside_tells_clouds_apart():
    torch.manual_seed(0)
    mixing = torch.randn(8, 8)
    inside, other = torch.randn(2000, 8) @ mixing, torch.randn(300, 8) @ mixing + 6 * torch.randn(8)
    outside = Outside.fit(inside[:1500])
    assert auroc(outside.distance(inside[1500:]), outside.distance(other)) > 0.99
    assert (outside.distance(inside[1500:]) > outside.threshold).float().mean() < 0.02
    assert auroc(torch.zeros(3), torch.zeros(4)) == 0.5


def test_outside_is_measured_on_scenes_against_crops(run, checkpoints, picture, tmp_path):
    autoencoder = OpenVision3Autoencoder.from_pretrained(run / "encoder" / "autoencoder")
    picture.resize((90, 60)).save(tmp_path / "one.png")
    found = measure(autoencoder, Outside.load(checkpoints), tmp_path, 10)
    assert (found["shapes"], found["photographs"]) == (10, 11) and 0 <= found["auroc"] <= 1
    with pytest.raises(ValueError, match="no .png"):
        measure(autoencoder, Outside.load(checkpoints), tmp_path / "empty", 10)
