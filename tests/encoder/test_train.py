"""The encoder package's trainings: what a user can get wrong is one sentence."""

import io
import json
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from encoder import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.data import ImageTextStream
from encoder.lpips import LPIPS, lpips_of_recipe
from encoder.train import EncoderRecipe, PreTrainingObjective, build_model
from encoder.train_tokenizer import train_tokenizer
from encoder.train_vae import Crops
from encoder.train_vae import main as train_vae
from encoder.vae import tiny_vae
from training.shards import write_shards
from training.streaming import ShuffledStream
from training.trainer import Trainer

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
WORDS = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def picture(format, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.fixture
def stage(tmp_path):
    """The folder of a stage trained at 32 px."""
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, **SMALL},
        decoder=dict(SMALL),
        text={"vocab_size": 20, "projection_dim": 32, **SMALL},
        noise_tau=0.3,
    )
    OpenVision3ForPreTraining(config).save_pretrained(tmp_path / "stage")
    return str(tmp_path / "stage")


def test_the_next_stage_keeps_the_settings_that_it_does_not_name(stage):
    recipe = EncoderRecipe(init_from=stage, objective={"pixel_loss_fraction": 0.5})
    config = build_model(recipe, WORDS, image_size=64).config
    assert (config.encoder["image_size"], config.noise_tau, config.pixel_loss_fraction) == (64, 0.3, 0.5)


def test_the_text_towers_have_the_tokenizers_special_tokens(stage):
    words = {"vocab_size": 30, "bos_token_id": 25, "eos_token_id": 7, "pad_token_id": 9}
    model = build_model(EncoderRecipe(objective={"pixel_loss_fraction": 0.0}), words, 64)
    for tower in (model.text_encoder, model.caption_decoder):
        assert {name: getattr(tower.config, name) for name in words} == words
    with pytest.raises(ValueError, match="have bos_token_id 1 and the tokenizer 25; give the tokenizer"):
        build_model(EncoderRecipe(init_from=stage), {**words, "vocab_size": 20}, 64)


def test_lpips_reaches_the_loss_with_its_weight(stage):
    model = OpenVision3ForPreTraining.from_pretrained(stage).eval()
    model.config.lpips_weight = 0.5
    objective = PreTrainingObjective(model, tiny_vae(), LPIPS()).eval()
    with torch.no_grad():
        for value in objective._lpips[0].linear:
            value.fill_(1.0)
    inputs = {
        "latents": torch.randn(2, 16, 4, 4),
        "pixels": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        "input_ids": torch.tensor([[1, 5, 2], [1, 6, 2]]),
        "attention_mask": torch.ones(2, 3, dtype=torch.long),
    }
    output = objective(**inputs)
    assert output["losses"]["lpips"] > 0
    torch.testing.assert_close(output["losses"]["weighted/lpips"], 0.25 * output["losses"]["lpips"])
    without = PreTrainingObjective(model, tiny_vae())
    assert not any("lpips" in name for name in [*without(**inputs)["losses"], *objective.state_dict()])


@pytest.mark.parametrize(
    "weight, fraction, paths, says",
    [
        (0.5, 1.0, (None, None), "lpips_weight is 0.5 and lpips_vgg is not set"),
        (0.5, 1.0, ("vgg.pth", None), "lpips_weight is 0.5 and lpips_linear is not set"),
        (0.5, 0.0, ("vgg.pth", "linear.pth"), "pixel_loss_fraction is 0: LPIPS needs pixels"),
    ],
)
def test_lpips_that_cannot_be_is_one_sentence(weight, fraction, paths, says):
    with pytest.raises(ValueError, match=says):
        lpips_of_recipe(weight, fraction, *paths)
    assert lpips_of_recipe(0.0, fraction, *paths) is None


@pytest.mark.parametrize("key", ["to_dict", "encoder", "noise_tua"])
def test_what_is_no_setting_is_named(stage, key):
    with pytest.raises(ValueError, match=f"objective.{key} cannot be set where .* choose among .*noise_tau"):
        build_model(EncoderRecipe(init_from=stage, objective={key: 1}), WORDS, 64)
    with pytest.raises(ValueError, match=f"{key} is no setting .* choose among .*noise_tau"):
        build_model(EncoderRecipe(objective={key: 1}), WORDS, 64)


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(ValueError, match="init_from: there is no model at nowhere"):
        build_model(EncoderRecipe(init_from="nowhere"), WORDS, 64)
    write_shards(tmp_path, [{"__key__": "a", "png": picture("PNG")}])
    (tmp_path / "recipe.yaml").write_text(f"shards: [{tmp_path}]\ninit_from: nowhere\noutput_dir: {tmp_path}/out")
    with pytest.raises(ValueError, match="init_from: there is no model at nowhere"):
        train_vae([str(tmp_path / "recipe.yaml"), "crop_size=8"])


def crops(folder, crop_size=8, seed=0):
    stream = ImageTextStream(folder)
    return ShuffledStream(stream.source, Crops(stream, crop_size, seed), seed, buffer_size=100)


def test_crops_come_from_any_kind_of_picture(tmp_path):
    kinds = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
    write_shards(tmp_path, [{"__key__": extension, extension: picture(kind)} for extension, kind in kinds.items()])
    items = list(islice(crops(tmp_path), 8))
    assert [item["pixel_values"].shape for item in items] == [(3, 8, 8)] * 8
    assert {item["key"].rpartition("/")[2] for item in items[:4]} == set(kinds)
    first = {item["key"]: item["pixel_values"] for item in items[:4]}
    assert not all(torch.equal(item["pixel_values"], first[item["key"]]) for item in items[4:])  # another epoch
    write_shards(tmp_path, [{"__key__": "odd", "txt": b"words"}])
    with pytest.raises(ValueError, match="sample odd has no picture"):
        next(iter(crops(tmp_path)))


@pytest.mark.parametrize(
    "text, size, says", [("a b c\n", 5000, "too high.*<="), ("a\n", 9, "smaller"), ("", 300, "no text")]
)
def test_a_vocabulary_that_does_not_fit_the_corpus_is_named(tmp_path, text, size, says):
    (tmp_path / "corpus.txt").write_text(text)
    with pytest.raises(ValueError, match=f"--vocab-size {size} does not fit the corpus .*{says}"):
        train_tokenizer(tmp_path / "corpus.txt", tmp_path / "out", size)


def test_what_gives_no_crops_is_one_sentence(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path}/out")
    with pytest.raises(ValueError, match="shards is empty"):
        train_vae([str(tmp_path / "recipe.yaml")])
    write_shards(tmp_path, [{"__key__": "small", "png": picture("PNG")}])
    assert next(iter(crops(tmp_path, 16)))["pixel_values"].shape == (3, 16, 16)
    with pytest.raises(ValueError, match="sample small is 16x24, smaller than crop_size=24: lower crop_size"):
        next(iter(crops(tmp_path, 24)))
    for size in (0, 12):
        with pytest.raises(ValueError, match=f"crop_size is {size} and must be a multiple of 8"):
            crops(tmp_path, size)


class Killed(Exception):
    pass


def test_the_vae_trains_from_a_stream_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("encoder.train_vae.CODE_CROPS", 50)
    samples = [{"__key__": f"{index:02d}", "png": picture("PNG", index)} for index in range(12)]
    samples[5]["png"] = b"a text"
    write_shards(tmp_path / "data", samples, per_shard=5)
    (tmp_path / "recipe.yaml").write_text(f"""
shards: [{tmp_path}/data]
crop_size: 8
buffer_size: 4
on_error: skip
trainer: {{max_steps: 7, per_device_train_batch_size: 2, learning_rate: 1.0e-3, save_steps: 2, logging_steps: 1,
  use_cpu: true, disable_tqdm: true, seed: 3, dataloader_num_workers: 2}}
""")

    def train(name, *more):
        train_vae([str(tmp_path / "recipe.yaml"), f"output_dir={tmp_path}/{name}", *more])
        history = json.loads((tmp_path / name / "history.json").read_text())["log_history"]
        losses = [row["loss"] for row in history if "loss" in row]
        return load_file(tmp_path / name / "diffusion_pytorch_model.safetensors"), losses, history

    whole, losses, history = train("whole")
    assert len(losses) == 7 and max(row.get("skipped_rows", 0) for row in history) >= 1

    def dying(self, *arguments, **options):
        if self.state.global_step == 5:
            raise Killed
        return step(self, *arguments, **options)

    step = Trainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", dying)
        with pytest.raises(Killed):
            train("killed")
    weights, again, _ = train("killed")
    assert again == losses
    for name, value in whole.items():
        assert torch.equal(value, weights[name]), name
    with pytest.raises(ValueError, match="written with workers 2 and this run has 3, so that it would see other"):
        train("killed", "trainer.dataloader_num_workers=3")


def test_the_frozen_vae_decodes_where_the_latents_are(stage):
    objective = PreTrainingObjective(OpenVision3ForPreTraining.from_pretrained(stage), tiny_vae())
    assert objective._decode(torch.zeros(1, 16, 4, 4)).shape == (1, 3, 32, 32)
    assert objective._decode(torch.zeros(1, 16, 4, 4, device="meta")).device.type == "meta"  # stands for a GPU
    assert not any("vae" in name for name in objective.state_dict())
