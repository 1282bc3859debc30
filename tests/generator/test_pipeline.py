"""The pipeline on an untrained family: round trip, noise, guidance, refusals, editing, re-ranking."""

import copy

import numpy as np
import pytest
import torch
from accelerate.hooks import UserCpuOffloadHook
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from generator import OpenVision3Pipeline
from generator.draw import draw
from generator.editing import encode_picture, variation
from generator.flow import picture_generators
from generator.pipeline import load_pipeline, make_scheduler

PROMPTS = ["a red circle", "a blue square", "a red circle left of a blue square"]


def test_saved_and_loaded_it_draws_the_same(pipeline, tmp_path):
    drawn = pipeline(PROMPTS[0], 3, generator=torch.Generator().manual_seed(5), output_type="pt").images
    tower = pipeline.text_encoder
    pipeline.save_pretrained(tmp_path)
    assert pipeline.text_encoder is tower
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is OpenVision3Pipeline
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(PROMPTS[0], 3, generator=torch.Generator().manual_seed(5), output_type="pt").images, drawn)
    assert again.scheduler.config.shift == pipeline.scheduler.config.shift


def test_the_own_text_tower_is_stored_once_and_another_beside_it(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "own")
    assert {path.name for path in (tmp_path / "own").iterdir()} == {
        "autoencoder", "autoencoder_tokenizer", "scheduler", "transformer", "model_index.json", "README.md"
    }  # fmt: skip
    again = load_pipeline(tmp_path / "own")
    assert again.text_encoder is again.autoencoder.text_encoder and again.tokenizer is again.autoencoder_tokenizer
    other = copy.deepcopy(pipeline.text_encoder)
    torch.nn.init.zeros_(other.norm.weight)
    foreign = OpenVision3Pipeline(**{**pipeline.components, "text_encoder": other})
    foreign.save_pretrained(tmp_path / "foreign")
    again = load_pipeline(tmp_path / "foreign")
    assert not again.text_encoder.norm.weight.any() and again.autoencoder.text_encoder.norm.weight.any()


def test_the_model_card_says_how_to_load_it_and_whose_licence_holds(pipeline, make_transformer, tmp_path):
    pipeline.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-image"
    assert "import generator" in card.text and "FLUX.1-dev's" in card.text and "64 x 64 pixels" in card.text
    code = card.text.split("```python")[1].split("```")[0]
    drawing = tmp_path / "drawing.png"
    for words, ours in (("path/of/this/folder", tmp_path), ("drawing.png", drawing), ('circle"', 'circle", 2')):
        code = code.replace(words, str(ours))
    exec(compile(code, "card", "exec"), {})
    assert drawing.is_file()
    classes = OpenVision3Pipeline(make_transformer(num_classes=5), pipeline.autoencoder, make_scheduler(1.0))
    classes.save_pretrained(tmp_path / "classes")
    with pytest.raises(ValueError, match="A negative prompt needs a pipeline that draws from text"):
        draw(["--model", f"{tmp_path}/classes", "--class-label", "1", "--negative-prompt", "dark", "--out", "no.png"])
    assert "Draws 5 classes" in ModelCard.load(tmp_path / "classes" / "README.md").text


def test_in_bfloat16_it_draws_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        tokens = pipe(PROMPTS[0], 5, generator=torch.Generator().manual_seed(5), output_type="latent").images
        assert tokens.dtype == torch.float32 and pipe(PROMPTS[0], 1).images[0].size == (64, 64)
        assert (pipe.to_tokens(encode_picture(pipe, torch.zeros(1, 3, 64, 64)))).dtype == torch.float32
        return tokens

    exact = drawn(load_pipeline(tmp_path))
    half = drawn(DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16))
    assert 0 < (half - exact).norm() < 0.02 * exact.norm()  # the rounding of all weights is in it
    assert torch.equal(drawn(load_pipeline(tmp_path).to("cpu", torch.bfloat16)), half)


def test_output_types(pipeline):
    def drawn(output_type):
        return pipeline(PROMPTS[:2], 2, generator=torch.Generator().manual_seed(0), output_type=output_type).images

    pictures, arrays, tensors = drawn("pil"), drawn("np"), drawn("pt")
    assert [image.size for image in pictures] == [(64, 64)] * 2
    assert arrays.shape == (2, 64, 64, 3) and tensors.shape == (2, 3, 64, 64)
    assert 0 <= arrays.min() and arrays.max() <= 1
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.asarray(pictures[1]) - 255 * arrays[1]).max() <= 0.51
    tokens = drawn("latent")
    assert tokens.shape == (2, 16, 192)
    assert np.array_equal(np.asarray(pipeline.decode(pipeline.to_grid(tokens))[0]), np.asarray(pictures[0]))
    with pytest.raises(ValueError, match="choose one of pil, np, pt, latent"):
        drawn("png")


def test_several_pictures_of_one_prompt_are_those_of_the_prompt_repeated(pipeline):
    def drawn(prompts, **options):
        generators = picture_generators(3, range(4))
        return pipeline(prompts, 2, generator=generators, output_type="latent", **options).images

    for negative in (None, "a blue square", ["a red circle", "blue"]):
        several = drawn(PROMPTS[:2], num_images_per_prompt=2, negative_prompt=negative)
        each = [text for text in negative for _ in range(2)] if isinstance(negative, list) else negative
        repeated = drawn([text for text in PROMPTS[:2] for _ in range(2)], negative_prompt=each)
        assert torch.allclose(several, repeated, atol=1e-3)  # of numbers up to 10; another batch, another sum
    with pytest.raises(ValueError, match="num_images_per_prompt is 0"):
        drawn(PROMPTS[:2], num_images_per_prompt=0)


def test_under_model_offload_every_part_is_brought_to_the_device_and_computes_there(pipeline, monkeypatch):
    """The meta device stands for a GPU: an operation that mixes devices fails on it; its results are empty."""
    offloaded = OpenVision3Pipeline(**copy.deepcopy(pipeline.components))
    offloaded.set_progress_bar_config(disable=True)
    options = {"prompt": PROMPTS[:2], "num_inference_steps": 2, "output_type": "pt", "num_images_per_prompt": 2}
    seeded = lambda: {"generator": torch.Generator().manual_seed(0)}  # noqa: E731
    offloaded.enable_model_cpu_offload(device="cpu")
    assert torch.equal(offloaded(**options, **seeded()).images, pipeline(**options, **seeded()).images)

    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda device: None)
    monkeypatch.setattr(UserCpuOffloadHook, "offload", lambda hook: None)
    monkeypatch.setattr(offloaded, "maybe_free_model_hooks", lambda: None)
    previews = []

    def callback(pipe, step, timestep, states):
        previews.append(pipe.decode(states["predicted"], "pt"))

    offloaded.enable_model_cpu_offload(device="meta")
    assert offloaded.transformer.device.type == offloaded.autoencoder.device.type == "cpu"
    images = offloaded(**options, **seeded(), callback_on_step_end=callback).images
    assert [each.device.type for each in (images, *previews)] == ["meta"] * 3
    assert offloaded.encode(torch.zeros(1, 3, 64, 64)).device.type == "meta"
    monkeypatch.setattr(offloaded, "decode", lambda hidden_states: hidden_states)
    varied = variation(offloaded, torch.zeros(1, 3, 64, 64), prompt="a red circle", num_inference_steps=2)
    assert varied.device.type == "meta"


def test_a_picture_does_not_depend_on_its_batch(pipeline):
    together = pipeline(PROMPTS, 2, generator=picture_generators(3, range(3)), output_type="latent").images
    alone = pipeline(PROMPTS[2], 2, generator=picture_generators(3, [2]), output_type="latent").images
    assert torch.allclose(together[2:], alone, atol=1e-4)


def test_outside_the_interval_the_unconditional_pass_is_not_computed(pipeline, monkeypatch):
    rows, forward = [], pipeline.transformer.forward
    counting = lambda **given: rows.append(len(given["timestep"])) or forward(**given)  # noqa: E731
    monkeypatch.setattr(pipeline.transformer, "forward", counting)
    pipeline(PROMPTS[0], 4, guidance_scale=3.0, guidance_interval=(0.3, 0.8), output_type="latent")
    assert rows == [1, 2, 2, 1]


def test_the_null_text_is_the_encoding_of_the_empty_text(pipeline):
    def drawn(**given):
        generator = torch.Generator().manual_seed(1)
        return pipeline(PROMPTS[0], 2, generator=generator, output_type="latent", guidance_scale=4.0, **given).images

    assert torch.equal(drawn(), drawn(negative_prompt=""))
    assert not torch.equal(drawn(), drawn(negative_prompt="a blue square"))


def test_callbacks_and_previews(pipeline):
    seen = []

    def callback(pipe, step, timestep, states):
        seen.append((step, timestep, pipe.decode(states["predicted"])[0].size))

    pipeline(PROMPTS[0], 2, callback_on_step_end=callback)
    assert seen == [(0, 0.5, (64, 64)), (1, 0.0, (64, 64))]

    def named(pipe, step, timestep, states):
        assert list(states) == ["hidden_states"]
        return {"hidden_states": torch.zeros_like(states["hidden_states"])}

    tokens = pipeline(
        PROMPTS[0], 2, callback_on_step_end=named, callback_on_step_end_tensor_inputs=["hidden_states"],
        output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(tokens, pipeline.to_tokens(torch.zeros(1, *pipeline.token_shape)))
    with pytest.raises(ValueError, match="asks for latents: there are hidden_states and predicted"):
        pipeline(PROMPTS[0], 2, callback_on_step_end=named, callback_on_step_end_tensor_inputs=["latents"])


@pytest.mark.parametrize("prompt", ["", "   ", [], ["a red circle", ""]])
def test_an_empty_prompt_is_refused(pipeline, prompt):
    with pytest.raises(ValueError, match="The prompt is empty"):
        pipeline(prompt, 2)


def test_refusals(pipeline, tmp_path, make_transformer):
    with pytest.raises(ValueError, match="draws from text"):
        pipeline(class_labels=[1])
    with pytest.raises(ValueError, match="either a prompt or class_labels"):
        pipeline()
    with pytest.raises(ValueError, match="shorten it"):
        pipeline("red " * 200, 2)
    with pytest.raises(FileNotFoundError, match="no generator at"):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match="last width is 120, below the token width 192"):
        narrow = make_transformer(hidden_size=(32, 120), text_hidden_size=192, num_attention_heads=(2, 2))
        OpenVision3Pipeline(narrow, pipeline.autoencoder, pipeline.scheduler, pipeline.text_encoder, pipeline.tokenizer)
    with pytest.raises(ValueError, match="reads text states of width 192, the text encoder gives 384"):
        other = make_transformer(text_hidden_size=192)
        OpenVision3Pipeline(other, pipeline.autoencoder, pipeline.scheduler, pipeline.text_encoder, pipeline.tokenizer)
    guided = OpenVision3Pipeline(
        pipeline.transformer, pipeline.autoencoder, pipeline.scheduler, pipeline.text_encoder, pipeline.tokenizer,
        guidance_transformer=pipeline.transformer,
    )  # fmt: skip
    guided.set_progress_bar_config(disable=True)
    assert guided(PROMPTS[0], 2, output_type="latent").images.shape == (1, 16, 192)
    with pytest.raises(ValueError, match="takes no negative prompt"):
        guided(PROMPTS[0], 2, negative_prompt="dark")


def test_classes(pipeline, make_transformer):
    transformer = make_transformer(num_classes=5)
    classes = OpenVision3Pipeline(transformer, pipeline.autoencoder, make_scheduler(1.0))
    classes.set_progress_bar_config(disable=True)
    assert len(classes(class_labels=[0, 4], num_inference_steps=2).images) == 2
    with pytest.raises(ValueError, match="between 0 and 4"):
        classes(class_labels=[5])
    with pytest.raises(ValueError, match="no text encoder"):
        classes("a red circle")


def test_a_pipeline_without_its_tokenizer_says_so(pipeline):
    mute = OpenVision3Pipeline(pipeline.transformer, pipeline.autoencoder, pipeline.scheduler)
    assert mute.text_encoder is pipeline.autoencoder.text_encoder
    with pytest.raises(ValueError, match="has no tokenizer to read a prompt: make it with tokenizer="):
        mute(PROMPTS[0], 1)


def test_the_command_draws(pipeline, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    draw(["--model", model, "--prompt", "a red circle", "--steps", "2", "--out", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").is_file()
    draw(["--model", model, "--prompt", "a red circle", "--steps", "2", "--best-of", "2", "--out", f"{tmp_path}/c.png"])
    assert (tmp_path / "c.png").is_file()
    with pytest.raises(ValueError, match="The prompt is empty"):
        draw(["--model", model, "--prompt", " ", "--out", str(tmp_path / "b.png")])
    with pytest.raises(SystemExit) as stopped:
        draw(["--help"])
    assert stopped.value.code == 0
    assert "--guidance" in capsys.readouterr().out
