"""The losses of pre-training (paper, equations 3 to 6)."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Rows of the vocabulary projection computed at a time; at 32,000 words a chunk's logits take 128 MB in float32.
CAPTION_CHUNK = 1024


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over the global batch; row i of one belongs to row i of the other.

    Args:
        image_features, text_features: [batch, projection_dim], normalised here.
        logit_scale: scalar, already exponentiated.

    Under torch.distributed the features of all processes are gathered with gradients and every process returns the loss
    of the whole batch, scaled so that averaging gradients over the processes (as DDP does) gives that loss's gradient.
    """
    image_features, text_features = F.normalize(image_features, dim=-1), F.normalize(text_features, dim=-1)
    if dist.is_initialized() and dist.get_world_size() > 1:
        image_features = torch.cat(all_gather(image_features))
        text_features = torch.cat(all_gather(text_features))
    with torch.autocast(image_features.device.type, enabled=False):  # bfloat16 cannot tell near cosines apart
        logits = logit_scale.float() * image_features.float() @ text_features.float().T
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def caption_loss(
    hidden_states: Tensor, head: nn.Linear, labels: Tensor, chunk: int = CAPTION_CHUNK, count: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the labelled positions, without holding all logits at once.

    Args:
        hidden_states: [..., hidden_size], the row of token i predicting label i.
        labels: [...], -100 where nothing is predicted.
        count: what the sum is divided by; None: the number of labelled positions, as `caption_count` has it.
    """
    states, targets = hidden_states.reshape(-1, hidden_states.shape[-1]), labels.reshape(-1)
    if count is None:
        count = mean_over_processes(caption_count(labels))
    if labels.device.type == "cpu":  # elsewhere shapes stay static: nothing waits for the device or is compiled anew
        states, targets = states[targets != -100], targets[targets != -100]

    def summed(part: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), target, ignore_index=-100, reduction="sum")

    parts = zip(states.split(chunk), targets.split(chunk), strict=True)
    if states.shape[0] <= chunk:
        total = summed(states, targets)
    else:
        total = torch.stack([checkpoint(summed, part, target, use_reentrant=False) for part, target in parts]).sum()
    return total / count.clamp(min=1e-6)  # 0 / 1e-6 where nothing is predicted


def caption_count(labels: Tensor) -> Tensor:
    """How many positions have a label: a float scalar."""
    return (labels != -100).sum().float()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar. Sums divided by it have, averaged over processes as by DDP, the whole batch's gradient."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def reconstruction_losses(
    decoded: Tensor,
    latents: Tensor,
    pixel_values: Tensor | None,
    decode_latents: Callable[[Tensor], Tensor] | None,
    pixel_loss_fraction: float,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The raw terms of equation 4 by name: `latent`, with `decode_latents` also `pixel`, and `lpips` where it is given.

    Args:
        decoded, latents: [batch, latent_channels, height/8, width/8].
        pixel_values: [batch, 3, height, width] in [-1, 1].
        decode_latents: the frozen VAE's decoder; None: latents only.
        pixel_loss_fraction: share of the rows, drawn anew at each call, that are decoded to pixels.
        lpips: see encoder.lpips; averaged over the same rows as the pixel loss.
    """
    losses = {"latent": F.l1_loss(decoded, latents)}
    if decode_latents is not None and pixel_loss_fraction > 0:
        count = math.ceil(pixel_loss_fraction * latents.shape[0])
        rows = torch.randperm(latents.shape[0])[:count].to(latents.device)
        pictures = decode_latents(decoded[rows])
        losses["pixel"] = F.l1_loss(pictures, pixel_values[rows])
        if lpips is not None:
            losses["lpips"] = lpips(pictures, pixel_values[rows]).mean()
    return losses
