"""The flow-matching loss: mean squared error of the velocity on normalised image tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generator.data import encode_latents
from generator.flow import time_shift
from generator.text import text_states
from generator.transformer import DiTDHTransformer2DModel

LATEST_TIMESTEP = 0.999  # RAE's, before the shift


class FlowObjective(nn.Module):
    """Holds the transformer, which learns; the frozen encoder and text encoder stay outside its submodules.

    It has no `.config` on purpose: the Trainer would take the transformer's for one of transformers.
    """

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

    def forward(
        self,
        timestep: Tensor,
        noise: Tensor,
        image_tokens: Tensor | None = None,
        latents: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> dict:
        """timestep [batch] before the shift; noise and image_tokens [batch, num_patches, channels], or VAE latents."""
        grid = self.transformer.grid
        tokens = self._image_tokens(image_tokens, latents)
        data = self.transformer.normalize(tokens.transpose(1, 2).unflatten(2, grid))
        noise = noise.transpose(1, 2).unflatten(2, grid)
        times = time_shift(timestep.clamp(max=LATEST_TIMESTEP), self.shift)
        mixing = times[:, None, None, None]
        condition = {"class_labels": class_labels}
        if input_ids is not None:
            states = text_states(self.frozen[1].to(input_ids.device), input_ids, attention_mask)
            condition = {"encoder_hidden_states": states, "encoder_attention_mask": attention_mask}
        noisy = (1 - mixing) * data + mixing * noise
        velocity = self.transformer(hidden_states=noisy, timestep=times, **condition).sample
        loss = F.mse_loss(velocity, noise - data)
        return {"loss": loss, "losses": {"velocity": loss.detach()}}
