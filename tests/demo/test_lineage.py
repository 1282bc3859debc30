"""Weights are noted when a training starts: one that goes on needs the same, and the export refuses a mix."""

import json
import shutil

import pytest
import torch

import generator.train
import mllm.train
from demo.export import CACHE, export
from demo.family import FamilyError
from encoder import OpenVision3Autoencoder
from encoder.lineage import read_parents, start_training, weights_hash, write_parents
from mllm.assemble import assemble


def retrain(folder):
    """Changes one weight of the encoder in a folder."""
    autoencoder = OpenVision3Autoencoder.from_pretrained(folder)
    with torch.no_grad():
        next(autoencoder.encoder.parameters()).view(-1)[0] += 1
    autoencoder.save_pretrained(folder)


@pytest.fixture()
def own_run(run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(run, tmp_path / "run")


@pytest.mark.parametrize("part", ["mllm", "generator"])
def test_an_encoder_retrained_after_what_stands_on_it_is_not_exported(own_run, part):
    old = weights_hash(own_run / "encoder" / "autoencoder")
    retrain(own_run / "encoder" / "autoencoder")
    new = weights_hash(own_run / "encoder" / "autoencoder")
    if part == "generator":  # only it is stale
        write_parents(own_run / "mllm", {"encoder": new})
    with pytest.raises(FamilyError, match=f"{part} was trained on the encoder {old}, not on {new}"):
        export(own_run, own_run / "out")
    assert not (own_run / "out").exists()


def test_another_vae_and_parts_without_a_note_are_not_exported(own_run):
    noted = read_parents(own_run / "encoder")["vae"]
    write_parents(own_run / "encoder", {"vae": "0" * 16})
    with pytest.raises(FamilyError, match=f"encoder was trained on the vae 0000000000000000, not on {noted}"):
        export(own_run, own_run / "out")
    (own_run / "encoder" / "trained_on.json").unlink()
    with pytest.raises(FamilyError, match="encoder was trained on the vae that nothing is noted of"):
        export(own_run, own_run / "out")


def test_a_training_goes_on_only_with_what_it_started_on(tmp_path):
    for _ in range(2):
        start_training(tmp_path / "out", {"encoder": "a", "init_from": "b"})
        assert read_parents(tmp_path / "out") == {"encoder": "a", "init_from": "b"}
    with pytest.raises(ValueError, match="started on the encoder a and would go on with c: bring"):
        start_training(tmp_path / "out", {"encoder": "c", "init_from": "b"})
    assert read_parents(tmp_path / "out")["encoder"] == "a"
    with pytest.raises(ValueError, match="no weights in"):
        weights_hash(tmp_path / "out")


def test_every_stage_of_the_llm_carries_its_encoder_on(own_run, family, tmp_path, picture):
    picture.save(tmp_path / "picture.png")
    turns = [{"from": "human", "value": "<image>\nwhat color is the circle?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "picture.png", "conversations": turns}] * 4))
    encoder = own_run / "encoder" / "autoencoder"

    def train(start, out):
        mllm.train.main(["mllm/recipes/tiny_align.yaml", f"init_from={start}", f"output_dir={out}",
                         f"data={tmp_path}/rows.json", f"images={tmp_path}", "trainer.max_steps=1",
                         "trainer.per_device_train_batch_size=2"])  # fmt: skip

    assemble(encoder, family / "llm", tmp_path / "assembled")
    train(tmp_path / "assembled", tmp_path / "align")
    train(tmp_path / "align", tmp_path / "tune")
    assert read_parents(tmp_path / "tune")["encoder"] == weights_hash(encoder)
    train(tmp_path / "align", tmp_path / "tune")
    retrain(encoder)
    assemble(encoder, family / "llm", tmp_path / "assembled")
    with pytest.raises(ValueError, match=f"align started on the encoder .* go on with {weights_hash(encoder)}"):
        train(tmp_path / "assembled", tmp_path / "align")


def test_the_generator_notes_its_encoder(own_run, tmp_path):
    encoder = own_run / "encoder" / "autoencoder"

    def train():
        generator.train.main(["generator/recipes/tiny.yaml", f"output_dir={tmp_path}/out", f"data=[{own_run}/{CACHE}]",
                              f"autoencoder={encoder}", "trainer.max_steps=1", "sample_steps=0",
                              "sample_inference_steps=1", "trainer.per_device_train_batch_size=2"])  # fmt: skip

    train()
    train()
    assert read_parents(tmp_path / "out") == {"encoder": weights_hash(encoder)}
    retrain(encoder)
    with pytest.raises(ValueError, match="out started on the encoder"):
        train()
