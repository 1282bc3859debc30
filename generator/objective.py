"""The flow-matching loss: mean squared error of the velocity on normalised image tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder.pretraining import length_groups
from generator.data import encode_latents
from generator.flow import time_shift
from generator.text import text_states
from generator.transformer import DiTDHTransformer2DModel

LATEST_TIMESTEP = 0.999  # RAE's, before the shift
GROUPED_PICTURES = 64  # smaller batches pass the transformer whole: a large model gains little from tiny groups


class FlowObjective(nn.Module):
    """Holds the transformer, which learns; the frozen encoder and text encoder stay outside its submodules.

    It has no `.config` on purpose: the Trainer would take the transformer's for one of transformers. exact_inputs: what
    the Trainer must not round to the dtype of the weights.
    """

    exact_inputs = ("timestep", "noise", "image_tokens", "latents")

    def __init__(
        self, transformer: DiTDHTransformer2DModel, shift: float, autoencoder: nn.Module, text_encoder: nn.Module | None
    ):
        super().__init__()
        self.transformer = transformer
        self.shift = shift
        self.frozen = (autoencoder, text_encoder)  # a tuple: not registered, not saved, not trained

    def _image_tokens(self, image_tokens: Tensor | None, latents: Tensor | None) -> Tensor:
        if image_tokens is not None:
            return image_tokens.float()
        autoencoder = self.frozen[0].to(latents.device)
        return torch.cat(list(encode_latents(autoencoder, latents)))

    def _velocity(self, noisy: Tensor, times: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The transformer's velocity, shaped like noisy; texts of like length pass together, with less padding."""
        whole = [(torch.arange(len(mask), device=mask.device), mask.shape[1])]
        groups = length_groups(mask) if len(mask) >= GROUPED_PICTURES else whole
        parts = []
        for rows, length in groups:
            length = max(1, length)
            text = {"encoder_hidden_states": states[rows, :length], "encoder_attention_mask": mask[rows, :length]}
            parts.append(self.transformer(hidden_states=noisy[rows], timestep=times[rows], **text).sample)
        order = torch.cat([rows for rows, _ in groups])
        return torch.cat(parts)[order.argsort()]

    def forward(
        self,
        timestep: Tensor,
        noise: Tensor,
        image_tokens: Tensor | None = None,
        latents: Tensor | None = None,
        input_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> dict:
        """timestep [batch] before the shift; noise and image_tokens [batch, num_patches, channels], or VAE latents.

        A text is encoder_hidden_states [batch, text, width] or input_ids [batch, text], with attention_mask. Whatever
        dtype they and the weights have, tokens, times and the loss are float32.
        """
        grid = self.transformer.grid
        tokens = self._image_tokens(image_tokens, latents)
        data = self.transformer.normalize(tokens.transpose(1, 2).unflatten(2, grid))
        noise = noise.float().transpose(1, 2).unflatten(2, grid)
        times = time_shift(timestep.float().clamp(max=LATEST_TIMESTEP), self.shift)
        mixing = times[:, None, None, None]
        noisy = (1 - mixing) * data + mixing * noise
        if class_labels is not None:
            velocity = self.transformer(hidden_states=noisy, timestep=times, class_labels=class_labels).sample
        else:
            if input_ids is not None:
                states = text_states(self.frozen[1].to(input_ids.device), input_ids, attention_mask)
            else:
                states = encoder_hidden_states.float()
            velocity = self._velocity(noisy, times, states, attention_mask)
        loss = F.mse_loss(velocity, noise - data)
        return {"loss": loss, "losses": {"velocity": loss.detach()}}
