"""Flow matching: time grids, noise and the one sampling loop.

timestep 0 is data, 1 is noise; noisy = (1 - t) * data + t * noise; velocity = noise - data; sampling goes from 1 to 0.
Everything here is about normalised tokens [batch, channels, height, width].
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHIFT_BASE = 4096  # numbers in a picture for which no shift is needed
METHODS = ("euler", "heun")
OnStep = Callable[[int, float, Tensor, Tensor], Tensor | None]  # see `sample`


def time_shift(timestep: Tensor, shift: float) -> Tensor:
    """Moves times towards noise: s t / (1 + (s - 1) t)."""
    return shift * timestep / (1 + (shift - 1) * timestep)


def dimension_shift(channels: int, height: int, width: int) -> float:
    """The shift of a token grid: sqrt(numbers / 4096), never below 1."""
    return max(1.0, math.sqrt(channels * height * width / SHIFT_BASE))


def renoise(tokens: Tensor, level: Tensor, higher: Tensor, noise: Tensor) -> Tensor:
    """Tokens of a noise level brought to a higher one by fresh noise, as if their data had been brought there."""
    kept = (1 - higher) / (1 - level)
    return kept * tokens + (higher**2 - (kept * level) ** 2).sqrt() * noise


def rae_timesteps(num_steps: int, shift: float) -> Tensor:
    """RAE's own grid: num_steps points from 1 to just above 0, so num_steps - 1 evaluations and no last step to 0."""
    return time_shift(1 - torch.linspace(0, 0.999, num_steps), shift)


def uniform_timesteps(num_steps: int, shift: float) -> Tensor:
    """num_steps + 1 points from 1 to exactly 0, evenly spaced before the shift: num_steps evaluations."""
    return time_shift(torch.linspace(1, 0, num_steps + 1), shift)


def picture_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator per picture, seeded by (seed, index of the picture): the same whatever the batch or world size."""
    states = (np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] for index in indices)
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


def draw_noise(
    count: int, shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> Tensor:
    """Noise [count, *shape], drawn picture by picture: bit-equal whatever the batch it is drawn in.

    generator: one for all (picture after picture), or one per picture.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != count:
            raise ValueError(
                f"There are {len(generator)} generators for {count} pictures: give one for all or one for each."
            )
        generators = generator
    else:
        generators = [generator] * count
    return torch.stack(
        [
            torch.randn(*shape, generator=each, device=each.device if each is not None else "cpu").cpu()
            for each in generators
        ]
    )


def _join_texts(
    states: Tensor, mask: Tensor | None, other_states: Tensor, other_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Two batches of texts in one, padded on the right to the longer."""
    length = max(states.shape[1], other_states.shape[1])
    parts, masks = [], []
    for part, part_mask in ((states, mask), (other_states, other_mask)):
        part_mask = (
            torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if part_mask is None else part_mask.bool()
        )
        parts.append(F.pad(part, (0, 0, 0, length - part.shape[1])))
        masks.append(F.pad(part_mask, (0, length - part_mask.shape[1])))
    return torch.cat(parts), torch.cat(masks)


class _GuidedVelocity:
    """velocity(noisy, t) with guidance inside the interval; outside it the second pass is not computed."""

    def __init__(
        self, transformer: nn.Module, condition: dict, negative: dict, scale: float, interval: tuple[float, float],
        guidance_transformer: nn.Module | None,
    ):  # fmt: skip
        self.transformer, self.guidance_transformer = transformer, guidance_transformer
        self.condition, self.scale, self.interval = condition, scale, interval
        self.joined: dict | None = None
        if scale != 1.0 and guidance_transformer is None:
            self.joined = self._join(condition, negative)

    def _join(self, condition: dict, negative: dict) -> dict:
        """The condition and its absence in one batch of twice the size."""
        if "class_labels" in condition:
            labels = condition["class_labels"]
            config = self.transformer.config
            if not config.null_class:
                raise ValueError("This transformer has no row for 'no class': classifier-free guidance needs one.")
            return {"class_labels": torch.cat([labels, torch.full_like(labels, config.num_classes)])}
        if negative.get("states") is None:
            raise ValueError("Guidance with text needs negative_encoder_hidden_states, the encoding of the empty text.")
        count = len(condition["encoder_hidden_states"])
        states, mask = negative["states"], negative["mask"]
        if len(states) != count:
            states = states.expand(count, -1, -1)
            mask = None if mask is None else mask.expand(count, -1)
        states, mask = _join_texts(
            condition["encoder_hidden_states"], condition.get("encoder_attention_mask"), states, mask
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def __call__(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        low, high = self.interval
        times = timestep.to(noisy.device).expand(len(noisy))
        if self.scale == 1.0 or not bool((timestep >= low) & (timestep <= high)):
            return self.transformer(hidden_states=noisy, timestep=times, **self.condition).sample
        if self.guidance_transformer is not None:
            velocity = self.transformer(hidden_states=noisy, timestep=times, **self.condition).sample
            base = self.guidance_transformer(hidden_states=noisy, timestep=times, **self.condition).sample
        else:
            both = self.transformer(hidden_states=noisy.repeat(2, 1, 1, 1), timestep=times.repeat(2), **self.joined)
            velocity, base = both.sample.chunk(2)
        return base + self.scale * (velocity - base)


@torch.no_grad()
def sample(
    transformer: nn.Module,
    noise: Tensor,
    timesteps: Tensor | Sequence[float],
    class_labels: Tensor | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_transformer: nn.Module | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    negative_encoder_hidden_states: Tensor | None = None,
    negative_encoder_attention_mask: Tensor | None = None,
    method: str = "euler",
    on_step: OnStep | None = None,
) -> Tensor:
    """Follows the velocity along `timesteps`; normalised tokens in and out, [batch, channels, height, width].

    timesteps: descending, at least two; Euler evaluates once per interval, Heun twice. noise: tokens at timesteps[0].
    Tokens and times are float32 from the first step to the last, whatever the dtype of the weights; a transformer casts
    what its layers read.
    guidance_scale s: v = v_uncond + s (v_cond - v_uncond) where guidance_interval (ends included) holds the time, 1 is
    none; with a weaker guidance_transformer v = v_weak + s (v - v_weak), both with the same condition.
    negative_encoder_hidden_states [batch or 1, text, width]: what to be guided away from, usually the encoding of "".
    on_step(step, timestep, tokens, predicted): called after each step with the time reached, the tokens there and the
    data the velocity pointed at; a tensor it returns replaces the tokens.

    Raises:
        ValueError: method, timesteps or guidance_interval are not of this kind, or guidance lacks what it needs.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: choose {' or '.join(METHODS)}.")
    times = torch.as_tensor(timesteps, dtype=torch.float32).cpu()  # where looking at them waits for no GPU
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise ValueError("timesteps must be a descending list of at least two times, from noise (1) to data (0).")
    low, high = guidance_interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"guidance_interval is {low} to {high}: give two noise levels from 0 to 1, the lower first.")
    if guidance_transformer is not None and negative_encoder_hidden_states is not None:
        raise ValueError("A guidance_transformer and a negative text cannot be used together: drop one of them.")
    condition = {"class_labels": class_labels, "encoder_hidden_states": encoder_hidden_states,
                 "encoder_attention_mask": encoder_attention_mask}  # fmt: skip
    condition = {name: value for name, value in condition.items() if value is not None}
    negative = {"states": negative_encoder_hidden_states, "mask": negative_encoder_attention_mask}
    velocity_at = _GuidedVelocity(
        transformer, condition, negative, float(guidance_scale), guidance_interval, guidance_transformer
    )

    tokens = noise.to(torch.promote_types(noise.dtype, torch.float32))
    for step, (time, next_time) in enumerate(zip(times[:-1], times[1:], strict=True)):
        velocity = velocity_at(tokens, time)
        predicted = tokens - time * velocity
        moved = tokens + (next_time - time) * velocity
        if method == "heun":
            moved = tokens + (next_time - time) * 0.5 * (velocity + velocity_at(moved, next_time))
        tokens = moved
        if on_step is not None:
            replaced = on_step(step, float(next_time), tokens, predicted)
            tokens = tokens if replaced is None else replaced
    return tokens
