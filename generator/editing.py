"""Work in the shared token space: variation, interpolation, inpainting, reconstruction.

Pictures are pixel_values [batch, 3, height, width] in [-1, 1], as encoder.images.to_pixel_values makes them. A prompt
or a class label, one for all or one each, says what the result should show; with neither it is left to the picture.
The remaining arguments are those of drawing: see generator.flow.sample. A pipeline with a guidance_transformer is
guided by it here too, prompt or not. The command: generator/edit.py
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from generator.flow import OnStep, draw_noise, renoise, sample
from generator.pipeline import Generators, OpenVision3Pipeline

Interval = tuple[float, float]


def picture_size(pipeline: OpenVision3Pipeline) -> tuple[int, int]:
    """Height and width of the pictures whose tokens fill the pipeline's grid."""
    rows, columns = pipeline.transformer.grid
    return rows * pipeline.autoencoder.patch_size, columns * pipeline.autoencoder.patch_size


@torch.no_grad()
def encode_picture(pipeline: OpenVision3Pipeline, pixel_values: Tensor) -> Tensor:
    """pixel_values [batch, 3, height, width] -> normalised tokens on their grid [batch, channels, rows, columns].

    Raises:
        ValueError: the pictures are not of the size that the pipeline draws.
    """
    height, width = picture_size(pipeline)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, height, width):
        raise ValueError(
            f"pixel_values are {list(pixel_values.shape)} and this pipeline edits [batch, 3, {height}, {width}]: make "
            f"them with encoder.images.to_pixel_values(images, {height})."
        )
    return pipeline.encode(pixel_values)


def _check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}: it is a noise level above 0 and at most 1.")


def _times_from(pipeline: OpenVision3Pipeline, level: float, num_inference_steps: int) -> Tensor:
    """The pipeline's time grid from this noise level downwards."""
    times = pipeline.timesteps(num_inference_steps)
    return torch.cat([times.new_tensor([level]), times[times < level - 1e-6]])


def _condition(
    pipeline: OpenVision3Pipeline, count: int, prompt: str | Sequence[str], class_labels: Sequence[int] | Tensor | None,
    guidance_scale: float,
) -> dict:  # fmt: skip
    """What to draw, for `count` pictures, and how strongly it guides, as arguments of `sample`."""
    config, device = pipeline.transformer.config, pipeline._execution_device
    if class_labels is not None:
        labels = torch.as_tensor(class_labels).reshape(-1)
        what = (prompt or None, labels.expand(count) if len(labels) == 1 else labels)
    elif prompt:
        what = ([prompt] * count if isinstance(prompt, str) else prompt, None)
    else:  # the condition is its own absence: nothing guides, unless a weaker network does
        scale = 1.0 if pipeline.guidance_transformer is None else guidance_scale
        if config.num_classes is None:
            states, mask = pipeline.encode_prompt([""] * count)
            return {"encoder_hidden_states": states, "encoder_attention_mask": mask, "guidance_scale": scale}
        if not config.null_class:
            raise ValueError("This transformer has no row for 'no class': give class_labels of the pictures.")
        return {"class_labels": torch.full((count,), config.num_classes, device=device), "guidance_scale": scale}
    given, arguments = pipeline.condition(*what, guidance_scale=guidance_scale)
    if given != count:
        raise ValueError(f"There are {given} prompts or class labels for {count} pictures: give one, or one each.")
    return {**arguments, "guidance_scale": guidance_scale}


def _noise(pipeline: OpenVision3Pipeline, count: int, generator: Generators) -> Tensor:
    return draw_noise(count, pipeline.token_shape, generator).to(pipeline._execution_device)


def reconstruct(pipeline: OpenVision3Pipeline, pixel_values: Tensor) -> list[Image.Image]:
    """Through the encoder and back: what the tokens keep of pictures [batch, 3, height, width].

    Raises:
        ValueError: the pictures have another size.
    """
    return pipeline.decode(encode_picture(pipeline, pixel_values))


def variation(
    pipeline: OpenVision3Pipeline, pixel_values: Tensor, strength: float = 0.7, prompt: str | Sequence[str] = "",
    num_inference_steps: int = 50, guidance_scale: float = 1.0, generator: Generators = None,
    guidance_interval: Interval = (0.0, 1.0), class_labels: Sequence[int] | Tensor | None = None, method: str = "euler",
    on_step: OnStep | None = None,
) -> list[Image.Image]:  # fmt: skip
    """Brings the tokens of pictures [batch, 3, height, width] to a noise level and draws on from there, one each.

    strength: the noise level; near 0 the picture stays, 1 keeps nothing of it. num_inference_steps: of a whole drawing,
    of which those below `strength` are done.

    Raises:
        ValueError: strength, size of the pictures or number of prompts do not fit, or `sample` refuses an argument.
    """
    _check_strength(strength)
    data = encode_picture(pipeline, pixel_values)
    noisy = (1 - strength) * data + strength * _noise(pipeline, len(data), generator)
    drawn = sample(
        pipeline.transformer, noisy, _times_from(pipeline, strength, num_inference_steps),
        guidance_interval=guidance_interval, guidance_transformer=pipeline.guidance_transformer, method=method,
        on_step=on_step, **_condition(pipeline, len(data), prompt, class_labels, guidance_scale),
    )  # fmt: skip
    return pipeline.decode(drawn)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Along the great circle between two tensors, picture by picture; weight 0 is the first, 1 the second."""
    a, b = first.flatten(1), second.flatten(1)
    cosine = F.cosine_similarity(a, b, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None]
    mixed = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / angle.sin()
    return mixed.reshape(first.shape)


def interpolate(
    pipeline: OpenVision3Pipeline, first: Tensor, second: Tensor, weights: Sequence[float] = (0.25, 0.5, 0.75),
    strength: float = 0.8, prompt: str | Sequence[str] = "", num_inference_steps: int = 50, guidance_scale: float = 1.0,
    generator: torch.Generator | None = None, guidance_interval: Interval = (0.0, 1.0),
    class_labels: Sequence[int] | Tensor | None = None, method: str = "euler", on_step: OnStep | None = None,
) -> list[Image.Image]:  # fmt: skip
    """Pictures between two, pixel_values [1, 3, height, width] each, one per weight; on_step follows one after another.

    A prompt is one for all or one per weight: generator.rerank.describe(pipeline, end) of the nearer end, for example.

    Both ends are brought to a noise level with the same noise, mixed by slerp and drawn on from there, so that the
    places between are pictures and not double exposures. The level is `strength` in the middle and falls to 0 along
    half an ellipse: weight 0 gives the first picture's reconstruction, weight 1 the second's.

    Raises:
        ValueError: strength, a weight or the pictures do not fit, or `sample` refuses an argument.
    """
    _check_strength(strength)
    if outside := [weight for weight in weights if not 0 <= weight <= 1]:
        raise ValueError(f"A weight is {outside[0]}: give weights from 0, the first picture, to 1, the second.")
    if len(first) != 1 or len(second) != 1:
        raise ValueError(f"There are {len(first)} and {len(second)} pictures to go between: give one and one.")
    prompts = [prompt] * len(weights) if isinstance(prompt, str) else prompt
    if len(prompts) != len(weights):
        raise ValueError(f"There are {len(prompts)} prompts for {len(weights)} weights: give one, or one each.")
    ends = [encode_picture(pipeline, each) for each in (first, second)]
    noise = _noise(pipeline, 1, generator)
    drawn = []
    for weight, text in zip(weights, prompts, strict=True):
        level = 2 * strength * math.sqrt(weight * (1 - weight))
        tokens = slerp(*((1 - level) * end + level * noise for end in ends), weight)
        if level > 0:
            tokens = sample(
                pipeline.transformer, tokens, _times_from(pipeline, level, num_inference_steps),
                guidance_interval=guidance_interval, guidance_transformer=pipeline.guidance_transformer, method=method,
                on_step=on_step, **_condition(pipeline, 1, text, class_labels, guidance_scale),
            )  # fmt: skip
        drawn.append(tokens)
    return pipeline.decode(torch.cat(drawn))


def inpaint(
    pipeline: OpenVision3Pipeline, pixel_values: Tensor, mask: Tensor, prompt: str | Sequence[str] = "",
    num_inference_steps: int = 50, guidance_scale: float = 3.0, generator: Generators = None,
    guidance_interval: Interval = (0.0, 1.0), class_labels: Sequence[int] | Tensor | None = None, method: str = "euler",
    on_step: OnStep | None = None, resamples: int = 3, output_type: str = "pil",
) -> list[Image.Image] | Tensor:  # fmt: skip
    """Draws a region of pictures [batch, 3, height, width] anew and keeps the rest.

    mask [height, width], the same for all pictures, true where to draw; a token with any of it in its patch is drawn.
    The region is blanked and the picture encoded again before anything is kept, because tokens elsewhere have seen what
    was there. The kept tokens are brought to the noise level of every step, so that the new ones can agree with them;
    what on_step returns for them is not taken.

    resamples: how often each step is done, from fresh noise on what was reached (RePaint's r, arXiv 2201.09865). Once
    is so many times faster, but what is new then agrees with what is kept only by chance.
    output_type: see OpenVision3Pipeline.decode; "latent" is what generator.rerank.likeliest chooses among.

    Raises:
        ValueError: mask, size of the pictures or number of prompts do not fit, resamples is below 1, or `sample`
            refuses an argument.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: a step is done at least once.")
    mask = mask.bool().to(pixel_values.device)
    if mask.shape != pixel_values.shape[-2:] or not mask.any() or mask.all():
        height, width = pixel_values.shape[-2:]
        raise ValueError(
            f"The mask must be [{height}, {width}] like the picture and true in a part of it; it is "
            f"{list(mask.shape)} and true in {100 * mask.float().mean():.0f}%."
        )
    kept_color = pixel_values[..., ~mask].median(dim=-1).values
    data = encode_picture(pipeline, torch.where(mask, kept_color[..., None, None], pixel_values))
    drawn_anew = F.adaptive_max_pool2d(mask[None, None].float(), data.shape[-2:]).bool().to(data.device)
    noise = _noise(pipeline, len(data), generator)
    times = pipeline.timesteps(num_inference_steps)
    condition = _condition(pipeline, len(data), prompt, class_labels, guidance_scale)

    def with_kept(tokens: Tensor, timestep: float | Tensor) -> Tensor:
        return torch.where(drawn_anew, tokens, (1 - timestep) * data + timestep * noise)

    def keep(step: int, _: int, timestep: float, tokens: Tensor, predicted: Tensor) -> Tensor:
        tokens, predicted = with_kept(tokens, timestep), torch.where(drawn_anew, predicted, data)
        replaced = None if on_step is None else on_step(step, timestep, tokens, predicted)
        return tokens if replaced is None else with_kept(replaced, timestep)

    tokens = noise
    for step, (time, lower) in enumerate(pairwise(times)):
        for again in reversed(range(resamples if time < 1 else 1)):  # at 1 there is noise alone
            tokens = sample(
                pipeline.transformer, tokens, torch.stack([time, lower]), guidance_interval=guidance_interval,
                guidance_transformer=pipeline.guidance_transformer, method=method,
                on_step=partial(keep, step), **condition,
            )  # fmt: skip
            if again:
                fresh = _noise(pipeline, len(data), generator)
                tokens = with_kept(renoise(tokens, lower, time, fresh), time)
    return pipeline.decode(tokens, output_type)
