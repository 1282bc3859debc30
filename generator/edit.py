"""Work in the shared token space: reconstruction, variation, interpolation, inpainting.

Pictures are pixel_values [batch, 3, height, width] in [-1, 1], as encoder.images.to_pixel_values makes them. A prompt,
one for all or one each, says what the result should show; the empty prompt leaves it to the picture.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from generator.flow import draw_noise, sample
from generator.pipeline import Generators, OpenVision3Pipeline


@torch.no_grad()
def encode_picture(pipeline: OpenVision3Pipeline, pixel_values: Tensor) -> Tensor:
    """pixel_values -> normalised tokens on their grid [batch, channels, height, width]."""
    autoencoder = pipeline.autoencoder
    tokens = autoencoder.encode(pixel_values.to(autoencoder.device, autoencoder.dtype))
    return pipeline.to_grid(tokens.to(pipeline.transformer.device))


def _check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}: it is a noise level above 0 and at most 1.")


def _times_from(pipeline: OpenVision3Pipeline, strength: float, num_inference_steps: int) -> Tensor:
    """The pipeline's time grid from the noise level `strength` downwards."""
    times = pipeline.timesteps(num_inference_steps)
    below = times[times < strength - 1e-6]
    return torch.cat([times.new_tensor([strength]), below])


def _arguments(pipeline: OpenVision3Pipeline, prompt: str | Sequence[str], count: int, guidance_scale: float) -> dict:
    """Arguments of `sample`: unlike in drawing the prompt may be empty, and then nothing guides."""
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise ValueError(f"There are {len(prompts)} prompts for {count} pictures: give one, or one each.")
    states, mask = pipeline.encode_prompt(prompts)
    arguments = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "guidance_scale": guidance_scale}
    if not any(text.strip() for text in prompts):
        arguments["guidance_scale"] = 1.0
    elif guidance_scale != 1.0:
        states, mask = pipeline.encode_prompt([""])
        arguments |= {"negative_encoder_hidden_states": states, "negative_encoder_attention_mask": mask}
    return arguments


def _noise(pipeline: OpenVision3Pipeline, count: int, generator: Generators) -> Tensor:
    return draw_noise(count, pipeline.token_shape, generator).to(pipeline.transformer.device)


def reconstruct(pipeline: OpenVision3Pipeline, pixel_values: Tensor) -> list[Image.Image]:
    """Through the encoder and back: what the tokens keep of a picture."""
    return pipeline.decode(encode_picture(pipeline, pixel_values))


def vary(
    pipeline: OpenVision3Pipeline, pixel_values: Tensor, strength: float = 0.7, prompt: str | Sequence[str] = "",
    num_inference_steps: int = 50, guidance_scale: float = 1.0, generator: Generators = None,
) -> list[Image.Image]:  # fmt: skip
    """Brings the picture's tokens to the noise level `strength` and draws on from there; 1 keeps nothing of it."""
    _check_strength(strength)
    data = encode_picture(pipeline, pixel_values)
    noise = _noise(pipeline, len(data), generator)
    noisy = (1 - strength) * data + strength * noise
    times = _times_from(pipeline, strength, num_inference_steps)
    return pipeline.decode(
        sample(pipeline.transformer, noisy, times, **_arguments(pipeline, prompt, len(data), guidance_scale))
    )


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Along the great circle between two tensors, picture by picture; weight 0 is the first, 1 the second."""
    a, b = first.flatten(1), second.flatten(1)
    cosine = F.cosine_similarity(a, b, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None]
    mixed = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / angle.sin()
    return mixed.reshape(first.shape)


def interpolate(
    pipeline: OpenVision3Pipeline, first: Tensor, second: Tensor, weights: Sequence[float] = (0.25, 0.5, 0.75),
    strength: float = 0.8, prompt: str = "", num_inference_steps: int = 50, guidance_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[Image.Image]:  # fmt: skip
    """Pictures between two, pixel_values [1, 3, height, width] each, one per weight.

    Both ends are brought to the noise level `strength` with the same noise, mixed by slerp and drawn on from there, so
    that the places between are pictures and not double exposures.
    """
    _check_strength(strength)
    noise = _noise(pipeline, 1, generator)
    ends = [(1 - strength) * encode_picture(pipeline, each) + strength * noise for each in (first, second)]
    noisy = torch.cat([slerp(*ends, weight) for weight in weights])
    times = _times_from(pipeline, strength, num_inference_steps)
    return pipeline.decode(
        sample(pipeline.transformer, noisy, times, **_arguments(pipeline, prompt, len(weights), guidance_scale))
    )


def inpaint(
    pipeline: OpenVision3Pipeline, pixel_values: Tensor, mask: Tensor, prompt: str | Sequence[str],
    num_inference_steps: int = 50, guidance_scale: float = 3.0, generator: Generators = None,
) -> list[Image.Image]:  # fmt: skip
    """Draws the masked region anew and keeps the rest.

    mask [height, width] of the picture, true where to draw. The region is blanked and the picture encoded again before
    anything is kept, because tokens elsewhere have seen what was there. The kept tokens are brought to the noise level
    of every step, so that the new ones can agree with them.
    """
    mask = mask.bool()
    if mask.shape != pixel_values.shape[-2:] or not mask.any() or mask.all():
        raise ValueError(f"The mask must be {tuple(pixel_values.shape[-2:])} like the picture, true in a part of it.")
    kept_color = pixel_values[..., ~mask].median(dim=-1).values
    blanked = torch.where(mask, kept_color[..., None, None], pixel_values)
    data = encode_picture(pipeline, blanked)
    grid_mask = F.adaptive_max_pool2d(mask[None, None].float(), data.shape[-2:]).bool().to(data.device)
    noise = _noise(pipeline, len(data), generator)

    def keep(step: int, timestep: float, tokens: Tensor, predicted: Tensor) -> Tensor:
        return torch.where(grid_mask, tokens, (1 - timestep) * data + timestep * noise)

    times = pipeline.timesteps(num_inference_steps)
    arguments = _arguments(pipeline, prompt, len(data), guidance_scale)
    return pipeline.decode(sample(pipeline.transformer, noise, times, on_step=keep, **arguments))
