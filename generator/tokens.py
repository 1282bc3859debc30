"""What a transformer knows of the tokens it draws: mean, deviation and, where asked, their principal axes."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Of a direction's variance, where normalised tokens have 1 on average: near t = 0 an empty one would ask for 1 / t.
VARIANCE_FLOOR = 1e-3


class TokenSpace:
    """Comes before `nn.Module` among the bases: token statistics as buffers, and what is computed from them alone.

    Normalising works wherever the model is: under CPU offload it may lie beside the tokens or not.
    """

    def normalize(self, image_tokens: Tensor) -> Tensor:
        """Raw image tokens on their grid [batch, channels, height, width] -> mean 0, variance 1 (stored statistics)."""
        return (image_tokens - self.token_mean.to(image_tokens.device)) / self.token_std.to(image_tokens.device)

    def denormalize(self, hidden_states: Tensor) -> Tensor:
        """The inverse of normalize."""
        return hidden_states * self.token_std.to(hidden_states.device) + self.token_mean.to(hidden_states.device)

    def register_statistics(self, shape: Sequence[int]) -> None:
        """Mean and deviation of this shape, 0 and 1 until set_statistics."""
        self.register_buffer("token_mean", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("token_std", torch.ones(shape, dtype=torch.float32))

    def register_axes(self, channels: int) -> None:
        """The principal axes; until set_covariance, tokens count as white: variance 1 in every direction."""
        self.register_buffer("token_directions", torch.eye(channels, dtype=torch.float32))
        self.register_buffer("token_variances", torch.ones(channels, dtype=torch.float32))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Stores token statistics: [channels], or [channels, height, width] where they are per position."""
        self.token_mean.copy_(mean.reshape(self.token_mean.shape))
        self.token_std.copy_(std.reshape(self.token_std.shape))

    def set_covariance(self, covariance: Tensor) -> None:
        """Stores the principal axes of normalised tokens, from their covariance [channels, channels]."""
        variances, directions = torch.linalg.eigh(covariance)
        self.token_directions.copy_(directions)
        self.token_variances.copy_(variances.clamp(min=VARIANCE_FLOOR))

    def linear_part(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """The velocity that is best among those linear in each token, shaped like hidden_states.

        Along an axis of variance s it is (t - s (1 - t)) / (t^2 + s (1 - t)^2) noisy: exact for Gaussian tokens.
        Image tokens fill few of their axes (the tiny encoder's 60 of 192): on the rest the velocity is noisy / t, which
        a narrow network otherwise spends its first hundreds of steps and half its width on.
        """
        time = timestep.float()[:, None, None]
        signal = self.token_variances * (1 - time)
        gain = (time - signal) / (time.square() + signal * (1 - time))
        directions = self.token_directions
        tokens = hidden_states.float().flatten(2).transpose(1, 2)
        with torch.autocast(tokens.device.type, enabled=False):  # else its products are bfloat16's whatever was cast
            velocity = (tokens @ directions * gain) @ directions.T
        return velocity.transpose(1, 2).unflatten(2, hidden_states.shape[-2:]).to(hidden_states.dtype)
