"""The pipeline on an untrained family: round trip, noise, guidance, refusals, editing, re-ranking."""

import pytest
import torch

from generator import OpenVision3Pipeline
from generator.draw import draw
from generator.edit import encode_picture
from generator.flow import picture_generators
from generator.pipeline import load_pipeline, make_scheduler

PROMPTS = ["a red circle", "a blue square", "a red circle left of a blue square"]


def test_saved_and_loaded_it_draws_the_same(pipeline, tmp_path):
    drawn = pipeline(PROMPTS[0], 3, generator=torch.Generator().manual_seed(5), output_type="pt").images
    pipeline.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(PROMPTS[0], 3, generator=torch.Generator().manual_seed(5), output_type="pt").images, drawn)
    assert again.scheduler.config.shift == pipeline.scheduler.config.shift


def test_in_bfloat16_it_draws_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)

    def drawn(**options):
        pipe = OpenVision3Pipeline.from_pretrained(tmp_path, **options)
        pipe.set_progress_bar_config(disable=True)
        tokens = pipe(PROMPTS[0], 5, generator=torch.Generator().manual_seed(5), output_type="tokens").images
        assert tokens.dtype == torch.float32 and pipe(PROMPTS[0], 1).images[0].size == (64, 64)
        assert (pipe.to_tokens(encode_picture(pipe, torch.zeros(1, 3, 64, 64)))).dtype == torch.float32
        return tokens

    exact, half = drawn(), drawn(torch_dtype=torch.bfloat16)
    assert 0 < (half - exact).norm() < 0.02 * exact.norm()  # the rounding of all weights is in it


def test_output_types(pipeline):
    images = pipeline(PROMPTS[:2], 2, generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(64, 64)] * 2
    tokens = pipeline(PROMPTS[:2], 2, output_type="tokens", generator=torch.Generator().manual_seed(0)).images
    assert tokens.shape == (2, 16, 192)
    with pytest.raises(ValueError, match="choose one of pil, pt, tokens"):
        pipeline(PROMPTS[0], 2, output_type="png")


def test_a_picture_does_not_depend_on_its_batch(pipeline):
    together = pipeline(PROMPTS, 2, generator=picture_generators(3, range(3)), output_type="tokens").images
    alone = pipeline(PROMPTS[2], 2, generator=picture_generators(3, [2]), output_type="tokens").images
    assert torch.allclose(together[2:], alone, atol=1e-4)


def test_outside_the_interval_the_unconditional_pass_is_not_computed(pipeline, monkeypatch):
    rows, forward = [], pipeline.transformer.forward
    counting = lambda **given: rows.append(len(given["timestep"])) or forward(**given)  # noqa: E731
    monkeypatch.setattr(pipeline.transformer, "forward", counting)
    pipeline(PROMPTS[0], 4, guidance_scale=3.0, guidance_interval=(0.3, 0.8), output_type="tokens")
    assert rows == [1, 2, 2, 1]


def test_the_null_text_is_the_encoding_of_the_empty_text(pipeline):
    def drawn(**given):
        generator = torch.Generator().manual_seed(1)
        return pipeline(PROMPTS[0], 2, generator=generator, output_type="tokens", guidance_scale=4.0, **given).images

    assert torch.equal(drawn(), drawn(negative_prompt=""))
    assert not torch.equal(drawn(), drawn(negative_prompt="a blue square"))


def test_callbacks_and_previews(pipeline):
    seen = []

    def callback(pipe, step, timestep, states):
        seen.append((step, timestep, pipe.decode(states["predicted"])[0].size))

    pipeline(PROMPTS[0], 2, callback_on_step_end=callback)
    assert seen == [(0, 0.5, (64, 64)), (1, 0.0, (64, 64))]


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
    assert guided(PROMPTS[0], 2, output_type="tokens").images.shape == (1, 16, 192)
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
