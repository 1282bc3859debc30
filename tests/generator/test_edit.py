"""Editing on an untrained family: what is kept, where the ends lie, that every option of drawing acts, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.images import to_pil, to_pixel_values
from generator import OpenVision3Pipeline
from generator.edit import edit
from generator.editing import encode_picture, inpaint, interpolate, reconstruct, slerp, variation
from generator.flow import picture_generators
from generator.pipeline import make_scheduler

PROMPT = "a red circle"
CALLS = {
    "variation": lambda pipe, pictures, **options: variation(pipe, pictures[:1], **options),
    "interpolate": lambda pipe, pictures, **options: interpolate(pipe, *pictures.split(1), [0.5], **options),
    "inpaint": lambda pipe, pictures, **options: inpaint(pipe, pictures[:1], corner(), **options),
}


def corner(side: int = 20) -> torch.Tensor:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:side, :side] = True
    return mask


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@pytest.fixture()
def pictures():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture()
def tokens(pipeline, monkeypatch):
    """Every edit gives the tokens it would have decoded."""
    monkeypatch.setattr(pipeline, "decode", lambda states, *_: states)


def test_every_picture_has_the_pictures_size(pipeline, pictures):
    results = [
        reconstruct(pipeline, pictures),
        variation(pipeline, pictures, 0.5, num_inference_steps=3, generator=picture_generators(0, [0, 1])),
        interpolate(pipeline, *pictures.split(1), (0.3, 0.6), num_inference_steps=3),
        inpaint(pipeline, pictures, corner(), [PROMPT, "a blue square"], num_inference_steps=3),
    ]
    assert [[image.size for image in images] for images in results] == [[(64, 64)] * 2] * 4


def test_inpainting_keeps_the_tokens_outside_the_mask(pipeline, pictures, tokens):
    mask, picture = corner(), pictures[:1]
    drawn = inpaint(pipeline, picture, mask, PROMPT, num_inference_steps=3, on_step=lambda *given: given[2] + 5)
    blanked = torch.where(mask, picture[..., ~mask].median(-1).values[..., None, None], picture)
    same = (drawn - reconstruct(pipeline, blanked)).abs().amax(1)[0] < 1e-5
    assert same[2:].all() and same[:, 2:].all()
    assert not same[:2, :2].any()


def test_inpainting_does_not_see_what_the_mask_covers(pipeline, pictures, tokens):
    covered = torch.where(corner(), 1.0, pictures[:1])
    drawn = [inpaint(pipeline, each, corner(), PROMPT, 3, generator=noise()) for each in (pictures[:1], covered)]
    assert torch.equal(*drawn)


def test_inpainting_repeats_its_steps_as_often_as_asked(pipeline, pictures, tokens, monkeypatch):
    levels, forward = [], pipeline.transformer.forward
    monkeypatch.setattr(
        pipeline.transformer, "forward", lambda **given: levels.append(given["timestep"][0].item()) or forward(**given)
    )
    options = {"num_inference_steps": 3, "guidance_scale": 1.0}
    once, twice = (inpaint(pipeline, pictures[:1], corner(), generator=noise(), resamples=n, **options) for n in (1, 2))
    times = pipeline.timesteps(3)[:-1].tolist()
    assert levels == pytest.approx([*times, times[0], times[1], times[1], times[2], times[2]])
    assert not torch.allclose(once, twice, atol=1e-4)
    pair = inpaint(pipeline, pictures, corner(), generator=picture_generators(0, [0, 1]), **options)
    second = inpaint(pipeline, pictures[1:], corner(), generator=picture_generators(0, [1]), **options)
    assert torch.allclose(pair[1:], second, atol=1e-4)  # the noise of a picture is its own, whatever the batch


def test_interpolation_ends_at_the_reconstructions(pipeline, pictures, tokens):
    drawn = interpolate(pipeline, *pictures.split(1), [0, 0.5, 1], num_inference_steps=3, generator=noise())
    ends = reconstruct(pipeline, pictures)
    assert torch.allclose(drawn[[0, 2]], ends, atol=1e-5)
    assert min((drawn[1] - end).norm() / end.norm() for end in ends) > 0.1
    near = interpolate(pipeline, *pictures.split(1), [1e-4], num_inference_steps=20, generator=noise())
    assert (near - ends[:1]).norm() < 0.05 * ends[:1].norm()  # no jump beside the end


def test_interpolation_takes_a_prompt_for_each_weight(pipeline, pictures, tokens):
    prompts, options = [PROMPT, "a blue square"], {"num_inference_steps": 3, "guidance_scale": 3.0}
    both = interpolate(pipeline, *pictures.split(1), [0.4, 0.6], prompt=prompts, generator=noise(), **options)
    for weight, prompt, drawn in zip([0.4, 0.6], prompts, both, strict=True):
        alone = interpolate(pipeline, *pictures.split(1), [weight], prompt=prompt, generator=noise(), **options)
        assert torch.allclose(drawn, alone[0], atol=1e-5)


def test_variation_grows_with_strength_from_the_picture_itself(pipeline, pictures, tokens):
    picture = encode_picture(pipeline, pictures[:1])
    distances = [
        (variation(pipeline, pictures[:1], strength, generator=noise(), num_inference_steps=10) - picture).norm()
        for strength in (1e-4, 0.3, 1.0)
    ]
    assert distances[0] < 1e-3 * picture.norm()
    assert distances[0] < distances[1] < distances[2]
    assert distances[2] > 0.5 * picture.norm()


def test_slerp_keeps_the_length():
    first, second = torch.randn(2, 1, 8, 4, 4)
    first, second = first / first.norm(), second / second.norm()
    assert slerp(first, second, 0.3).norm().item() == pytest.approx(1.0, abs=1e-4)
    assert torch.allclose(slerp(first, second, 0.0), first, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_every_option_of_drawing_acts(pipeline, pictures, tokens, name, make_transformer):
    def drawn(pipe=pipeline, **options):
        options = {"prompt": PROMPT, "guidance_scale": 3.0, "num_inference_steps": 4, **options}
        return CALLS[name](pipe, pictures, generator=noise(), **options)

    seen = []
    plain = drawn(on_step=lambda step, timestep, states, predicted: seen.append((step, timestep, predicted.shape)))
    assert torch.equal(plain, drawn())
    steps = [step for step, _, _ in seen]
    assert seen[-1][1] == 0 and steps == sorted(steps) and set(steps) == set(range(steps[-1] + 1))
    assert all(shape == (1, 192, 4, 4) for _, _, shape in seen)
    changed = {
        "guidance_scale": 1.0, "guidance_interval": (0.0, 0.3), "method": "heun", "prompt": "",
        "num_inference_steps": 5, "on_step": lambda step, timestep, states, predicted: states * 0.9,
    }  # fmt: skip
    for option, value in changed.items():
        assert not torch.allclose(plain, drawn(**{option: value}), atol=1e-5), option
    weaker = make_transformer(text_hidden_size=pipeline.transformer.config.text_hidden_size).requires_grad_(False)
    weaker.final_layer.linear.weight.mul_(0.5)
    guided = OpenVision3Pipeline(
        pipeline.transformer, pipeline.autoencoder, pipeline.scheduler, pipeline.text_encoder, pipeline.tokenizer,
        guidance_transformer=weaker,
    )  # fmt: skip
    guided.decode = lambda states, *_: states
    assert not torch.allclose(plain, drawn(guided), atol=1e-5)
    assert not torch.allclose(drawn(guided, prompt=""), drawn(prompt=""), atol=1e-5)  # needs no prompt


def test_without_a_prompt_nothing_guides_and_nothing_is_computed_twice(pipeline, pictures, monkeypatch):
    rows, forward = [], pipeline.transformer.forward
    monkeypatch.setattr(
        pipeline.transformer, "forward", lambda **given: rows.append(len(given["timestep"])) or forward(**given)
    )
    variation(pipeline, pictures, 1.0, num_inference_steps=2, guidance_scale=4.0)
    assert rows == [2, 2]


@pytest.mark.parametrize("name", CALLS)
def test_classes(pipeline, pictures, name, make_transformer):
    classes = OpenVision3Pipeline(make_transformer(num_classes=5), pipeline.autoencoder, make_scheduler(1.0))
    classes.decode = lambda states, *_: states
    drawn = [
        CALLS[name](classes, pictures, generator=noise(), num_inference_steps=3, **options)
        for options in ({}, {"class_labels": [2]}, {"class_labels": [3]})
    ]
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2])
    with pytest.raises(ValueError, match="between 0 and 4"):
        CALLS[name](classes, pictures, class_labels=[5])
    with pytest.raises(ValueError, match="no text encoder"):
        CALLS[name](classes, pictures, prompt=PROMPT)


@pytest.mark.parametrize(
    ("call", "words"),
    [(lambda pipe, two: variation(pipe, two, 0), "strength is 0: it is a noise level above 0"),
     (lambda pipe, two: interpolate(pipe, *two.split(1), strength=1.1), "strength is 1.1"),
     (lambda pipe, two: interpolate(pipe, *two.split(1), [0.5, 1.5]), "A weight is 1.5: give weights from 0"),
     (lambda pipe, two: interpolate(pipe, two, two), "There are 2 and 2 pictures to go between"),
     (lambda pipe, two: interpolate(pipe, *two.split(1), prompt=[PROMPT]), "There are 1 prompts for 3 weights"),
     (lambda pipe, two: inpaint(pipe, two, corner()[:, :32]), r"The mask must be \[64, 64\] .*; it is \[64, 32\]"),
     (lambda pipe, two: inpaint(pipe, two, corner(0)), "true in 0%"),
     (lambda pipe, two: inpaint(pipe, two, corner(), resamples=0), "resamples is 0: a step is done at least once"),
     (lambda pipe, two: inpaint(pipe, two, corner(64)), "true in 100%"),
     (lambda pipe, two: reconstruct(pipe, two[..., :32]), r"are \[2, 3, 64, 32\] and this pipeline edits .* 64, 64"),
     (lambda pipe, two: variation(pipe, two[0]), r"are \[3, 64, 64\]"),
     (lambda pipe, two: variation(pipe, two, prompt=[PROMPT] * 3), "3 prompts or class labels for 2 pictures"),
     (lambda pipe, two: variation(pipe, two, prompt=[PROMPT, " "]), "The prompt is empty"),
     (lambda pipe, two: variation(pipe, two, class_labels=[1]), "draws from text"),
     (lambda pipe, two: variation(pipe, two, method="rk4"), "choose euler or heun"),
     (lambda pipe, two: variation(pipe, two, guidance_interval=(0.9, 0.1)), "two noise levels from 0 to 1"),
     (lambda pipe, two: variation(pipe, two, num_inference_steps=0), "give at least 1")],
)  # fmt: skip
def test_refusals(pipeline, pictures, call, words):
    with pytest.raises(ValueError, match=words):
        call(pipeline, pictures)


def test_the_command_edits(pipeline, pictures, tmp_path, capsys, monkeypatch):
    pipeline.save_pretrained(tmp_path / "model")
    first, second = (tmp_path / f"{name}.png" for name in ("first", "second"))
    for path, image in zip((first, second), to_pil(pictures), strict=True):
        image.save(path)
    Image.fromarray(np.uint8(corner()) * 255).save(tmp_path / "mask.png")

    def run(command, *rest, images=(first,)):
        out = tmp_path / "out" / f"{command}.png"
        edit([command, "--model", str(tmp_path / "model"), "--out", str(out), "--image", *map(str, images), *rest])
        return Image.open(out).copy()  # read before the next run overwrites it

    again = run("reconstruct")
    expected = reconstruct(pipeline, to_pixel_values([Image.open(first)], 64))[0]
    assert np.abs(np.int16(again) - np.int16(expected)).max() <= 1
    assert run("variation", "--count", "3", "--steps", "2", "--strength", "0.5", "--method", "heun").size == (128, 128)
    row = run("interpolate", "--count", "1", "--steps", "2", images=(first, second))
    assert row.size == (192, 64)
    assert np.abs(np.int16(row.crop((0, 0, 64, 64))) - np.int16(expected)).max() <= 1
    monkeypatch.setattr("generator.edit.describe", lambda pipe, pictures: [PROMPT, "a blue square"][: len(pictures)])
    capsys.readouterr()
    options = ["--steps", "2", "--guidance", "3"]
    described = np.asarray(run("interpolate", "--count", "1", "--describe", *options, images=(first, second)))
    assert "a red circle\na blue square" in capsys.readouterr().out
    assert (described == run("interpolate", "--count", "1", "--prompt", PROMPT, *options, images=(first, second))).all()
    mask = str(tmp_path / "mask.png")
    inpainted = run("inpaint", "--mask", mask, "--prompt", PROMPT, "--steps", "2", "--resamples", "2",
                    "--interval", "0", "0.5")  # fmt: skip
    assert inpainted.size == (64, 64)
    chosen = run("inpaint", "--mask", mask, "--prompt", PROMPT, "--steps", "2", "--best-of", "2", "--count", "2")
    all_four = run("inpaint", "--mask", mask, "--prompt", PROMPT, "--steps", "2", "--count", "4")
    tiles = [np.int16(all_four.crop((x, y, x + 64, y + 64))) for y in (0, 64) for x in (0, 64)]
    for number in (0, 1):
        picture = np.int16(chosen.crop((64 * number, 0, 64 * number + 64, 64)))
        assert min(np.abs(picture - tile).max() for tile in tiles[2 * number : 2 * number + 2]) <= 1
    with pytest.raises(ValueError, match="--best-of needs a --prompt"):
        run("inpaint", "--mask", mask, "--best-of", "2")
    with pytest.raises(ValueError, match="--best-of is 0: it must be at least 1"):
        run("inpaint", "--mask", mask, "--prompt", PROMPT, "--best-of", "0")
    with pytest.raises(ValueError, match="no picture at"):
        run("reconstruct", images=(tmp_path / "missing.png",))
    with pytest.raises(ValueError, match="--count is 0"):
        run("variation", "--count", "0")
    capsys.readouterr()
    for command in ([], ["variation"], ["interpolate"], ["inpaint"], ["reconstruct"]):
        with pytest.raises(SystemExit) as stopped:
            edit([*command, "--help"])
        assert stopped.value.code == 0
        assert (" ".join(command) or "inpaint") in capsys.readouterr().out
