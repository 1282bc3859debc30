"""Contrast over all micro-batches of an optimizer step, as over one undivided batch.

Gradient accumulation alone would contrast every micro-batch with itself only. Here a step has two passes (GradCache,
arXiv 2101.06983): the features of all micro-batches without gradient, which give the whole step's loss and its gradient
on every feature; then each micro-batch again, its features pulled along that gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.losses import contrastive_loss, mean_over_processes


@dataclass
class WholeStep:
    """What a micro-batch must know of its step: all its micro-batches, in all processes.

    loss: scalar, the contrastive loss of the whole step.
    image_gradient, text_gradient: [batch, projection_dim], that loss's gradient on the features of this micro-batch,
        times the number of micro-batches, which the Trainer divides by.
    scale_gradient: scalar, on the logit scale.
    caption_count: scalar, labelled caption positions, mean over micro-batches and processes.
    """

    loss: Tensor
    image_gradient: Tensor
    text_gradient: Tensor
    scale_gradient: Tensor
    caption_count: Tensor

    def contrastive_loss(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        """The whole step's loss, whose gradient on these features (as the first pass saw them) is the cached one."""
        pull = (
            (image_features.float() * self.image_gradient).sum()
            + (text_features.float() * self.text_gradient).sum()
            + logit_scale.float() * self.scale_gradient
        )
        return self.loss + (pull - pull.detach())


def share_step(objective: Callable[..., dict[str, Tensor]], batches: list[dict]) -> list[dict]:
    """The first pass over a step's micro-batches, equal in size: each is returned with its `whole_step`.

    Args:
        batches: tensors go to the objective; what is the Trainer's alone (keys, progress) stays in its batch.
        objective: the PreTrainingObjective, wrapped as the Trainer has it. No random number is drawn: noise and the
            rows of the pixel loss are the second pass's alone.
    """
    with torch.no_grad():
        features = [
            objective(
                **{name: value for name, value in batch.items() if isinstance(value, Tensor)}, features_only=True
            )
            for batch in batches
        ]
    image_features = torch.cat([part["image_features"] for part in features]).requires_grad_()
    text_features = torch.cat([part["text_features"] for part in features]).requires_grad_()
    logit_scale = features[0]["logit_scale"].detach().requires_grad_()
    loss = contrastive_loss(image_features, text_features, logit_scale)
    images, texts, scale = torch.autograd.grad(loss, [image_features, text_features, logit_scale])
    count = mean_over_processes(torch.stack([part["caption_count"] for part in features]).mean())
    sizes = [len(part["image_features"]) for part in features]
    shares = zip(batches, images.float().split(sizes), texts.float().split(sizes), strict=True)
    return [
        {**batch, "whole_step": WholeStep(loss.detach(), len(batches) * image, len(batches) * text, scale, count)}
        for batch, image, text in shares
    ]
