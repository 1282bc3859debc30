"""Joint pre-training: reconstruction, image-text contrast and captioning on one set of tokens (paper, section 3)."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from encoder.accumulation import WholeStep
from encoder.decoder import DECODER_PRESETS, LatentDecoder
from encoder.layers import StrictLoading
from encoder.losses import caption_count, caption_loss, contrastive_loss, reconstruction_losses
from encoder.model import OpenVision3Config, OpenVision3Model
from encoder.text import TEXT_PRESETS, CaptionDecoder, OpenVision3TextConfig, TextEncoder

# exp of it is 1 / 0.07, OpenVision's initial temperature.
INITIAL_LOG_SCALE = math.log(1 / 0.07)

# A batch's texts pass through the text towers in so many groups of like length.
TEXT_GROUPS = 4


class OpenVision3PreTrainingConfig(PretrainedConfig):
    """The encoder, what it is trained with, and the weights of the losses (defaults: paper, Table 1, pre-training).

    Args:
        encoder, decoder, text: keyword arguments of OpenVision3Config, LatentDecoder and OpenVision3TextConfig.
        reconstruction_weight, understanding_weight: w_rec and w_und, equation 6.
        latent_weight, lpips_weight: beta and lambda, of latent l1 and LPIPS beside the pixel l1, equation 4.
        contrastive_weight: alpha, of contrast beside captioning, equation 5.
        noise_tau, noise_space: see LatentDecoder. tau is not published; 0.8 is RAE's.
        pixel_loss_fraction: share of the batch, drawn anew each step, that is decoded to pixels.
        logit_scale_max: the temperature is clamped there; None: never (as published).
    """

    model_type = "openvision3_pretraining"

    def __init__(
        self,
        encoder: dict | None = None,
        decoder: dict | None = None,
        text: dict | None = None,
        reconstruction_weight: float = 0.5,
        understanding_weight: float = 1.0,
        latent_weight: float = 0.4,
        lpips_weight: float = 0.0,
        contrastive_weight: float = 1.0,
        noise_tau: float = 0.8,
        noise_space: str = "layernorm",
        pixel_loss_fraction: float = 1.0,
        logit_scale_max: float | None = None,
        **kwargs,
    ) -> None:
        if noise_space == "statistics":
            raise ValueError(
                "noise_space 'statistics' needs a frozen encoder, whose tokens keep theirs; choose layernorm or raw."
            )
        if not 0 <= pixel_loss_fraction <= 1:
            raise ValueError(f"pixel_loss_fraction is {pixel_loss_fraction} and must lie between 0 and 1.")
        self.encoder = encoder or {}
        self.decoder = decoder or dict(DECODER_PRESETS["base"])
        self.text = text or {}
        self.reconstruction_weight = reconstruction_weight
        self.understanding_weight = understanding_weight
        self.latent_weight = latent_weight
        self.lpips_weight = lpips_weight
        self.contrastive_weight = contrastive_weight
        self.noise_tau = noise_tau
        self.noise_space = noise_space
        self.pixel_loss_fraction = pixel_loss_fraction
        self.logit_scale_max = logit_scale_max
        super().__init__(**kwargs)

    @classmethod
    def settings(cls) -> list[str]:
        """The names of all settings but the parts' own: what a recipe may set."""
        names = inspect.signature(cls.__init__).parameters
        return [name for name in names if name not in ("self", "encoder", "decoder", "text", "kwargs")]

    @classmethod
    def preset(
        cls, size: str, vocab_size: int, image_size: int, decoder_size: str | None = None, **overrides
    ) -> "OpenVision3PreTrainingConfig":
        """Encoder and text towers of one size; the decoder is base, as in the paper, beside all but the tiny encoder.

        Raises:
            ValueError: there is no such size, or no such setting among the overrides.
        """
        encoder = OpenVision3Config.preset(size, image_size=image_size)
        if decoder_size is None:
            decoder_size = "tiny" if size == "tiny" else "base"
        if decoder_size not in DECODER_PRESETS:
            raise ValueError(
                f"There is no decoder preset {decoder_size!r}; choose one of {', '.join(DECODER_PRESETS)}."
            )
        if unknown := sorted(overrides.keys() - cls.settings()):
            raise ValueError(
                f"{unknown[0]} is no setting of OpenVision3PreTrainingConfig; choose among {', '.join(cls.settings())}."
            )
        return cls(
            encoder={
                "image_size": image_size,
                **{
                    key: getattr(encoder, key)
                    for key in (
                        "hidden_size",
                        "num_hidden_layers",
                        "num_attention_heads",
                        "intermediate_size",
                        "position_frequencies",
                    )
                },
            },
            decoder=dict(DECODER_PRESETS[decoder_size]),
            text={"vocab_size": vocab_size, "projection_dim": encoder.projection_dim, **TEXT_PRESETS[size]},
            **overrides,
        )


def length_groups(attention_mask: Tensor) -> list[tuple[Tensor, int]]:
    """Rows of like length together, so that short texts are not padded to the longest of the batch.

    On the CPU only: an accelerator wants static shapes, and would be waited for to learn the lengths. There, all rows
    are one group.

    Args:
        attention_mask: [batch, length], 1 on the text, padding on the right.

    Returns:
        (row numbers, length of their longest text) for each of at most TEXT_GROUPS groups; every row is in one.
    """
    if attention_mask.device.type != "cpu":
        return [(torch.arange(attention_mask.shape[0], device=attention_mask.device), attention_mask.shape[1])]
    lengths = attention_mask.sum(dim=1)
    groups = lengths.argsort(stable=True).chunk(TEXT_GROUPS)
    return [(rows, int(lengths[rows[-1]])) for rows in groups]


def caption_labels(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """[batch, length - 1]: the token that follows each one, -100 where that is padding."""
    return input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)


@dataclass
class PreTrainingOutput(ModelOutput):
    """loss: the weighted sum. losses: every raw term and, as `weighted/name`, what it adds; detached."""

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    image_tokens: Tensor | None = None


class OpenVision3ForPreTraining(StrictLoading, PreTrainedModel):
    """The encoder with latent decoder, text encoder and caption decoder."""

    config_class = OpenVision3PreTrainingConfig
    base_model_prefix = "pretraining"
    main_input_name = "latents"
    accepts_loss_kwargs = False
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: OpenVision3PreTrainingConfig) -> None:
        super().__init__(config)
        encoder, text = OpenVision3Config(**config.encoder), OpenVision3TextConfig(**config.text)
        self.encoder = OpenVision3Model(encoder)
        self.latent_decoder = LatentDecoder(
            encoder.hidden_size,
            encoder.latent_channels,
            encoder.latent_patch_size,
            **config.decoder,
            noise_tau=config.noise_tau,
            noise_space=config.noise_space,
        )
        self.text_encoder = TextEncoder(text)
        self.caption_decoder = CaptionDecoder(text, encoder.hidden_size)
        # One element, not a scalar, which neither DeepSpeed's broadcast nor FSDP takes.
        self.log_scale = nn.Parameter(torch.tensor([INITIAL_LOG_SCALE]))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Each part has initialised itself."""

    def logit_scale(self) -> Tensor:
        """The factor of the cosines in contrast: a scalar, clamped where the config says so."""
        scale = self.log_scale.squeeze(0).exp()
        return scale if self.config.logit_scale_max is None else scale.clamp(max=self.config.logit_scale_max)

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor, groups: list[tuple[Tensor, int]]) -> Tensor:
        parts = [
            self.text_encoder(input_ids[rows, :length], attention_mask[rows, :length]).pooler_output
            for rows, length in groups
        ]
        return torch.cat(parts)[torch.cat([rows for rows, _ in groups]).argsort()]

    def features(self, latents: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """What contrast sees of a batch: image_features, text_features [batch, projection_dim] and logit_scale; and
        caption_count, the number of positions that the caption loss is a mean over."""
        return {
            "image_features": self.encoder(latents=latents).pooler_output,
            "text_features": self._text_features(input_ids, attention_mask, length_groups(attention_mask)),
            "logit_scale": self.logit_scale(),
            "caption_count": caption_count(caption_labels(input_ids, attention_mask)),
        }

    def forward(
        self,
        latents: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        decode_latents: Callable[[Tensor], Tensor] | None = None,
        lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
        measure_gradients: bool = False,
        whole_step: WholeStep | None = None,
    ) -> PreTrainingOutput:
        """One step's losses.

        Args:
            latents: [batch, latent_channels, height/8, width/8], frozen.
            input_ids: [batch, length], a caption as bos, words, eos, padding; also what contrast reads.
            attention_mask: [batch, length], 1 on the caption.
            pixel_values: [batch, 3, height, width] in [-1, 1]; with `decode_latents` (the frozen VAE's decoder), the
                pixel loss is computed on a random `pixel_loss_fraction` of the rows.
            lpips: see encoder.lpips; None: lpips_weight has nothing to weigh.
            measure_gradients: also report, as `gradient/name`, the norm of each weighted term's gradient on the
                encoder's parameters: which loss it listens to.
            whole_step: this is one of several micro-batches, contrasted with all of them (see encoder.accumulation).

        Raises:
            ValueError: `decode_latents` without `pixel_values`.
        """
        if decode_latents is not None and pixel_values is None:
            raise ValueError("The pixel loss compares with pixel_values; give them, or leave decode_latents out.")
        config = self.config
        encoded = self.encoder(latents=latents)
        image_tokens = encoded.last_hidden_state
        patch = self.encoder.config.latent_patch_size
        grid = (latents.shape[2] // patch, latents.shape[3] // patch)
        decoded = self.latent_decoder(image_tokens, grid)
        raw = reconstruction_losses(decoded, latents, pixel_values, decode_latents, config.pixel_loss_fraction, lpips)
        weights = {
            "latent": config.reconstruction_weight * config.latent_weight,
            "pixel": config.reconstruction_weight,
            "lpips": config.reconstruction_weight * config.lpips_weight,
            "caption": config.understanding_weight,
            "contrastive": config.understanding_weight * config.contrastive_weight,
        }
        groups = length_groups(attention_mask)
        labels = caption_labels(input_ids, attention_mask)
        states, targets = [], []
        for rows, length in groups:
            hidden_states = self.caption_decoder.hidden_states(image_tokens[rows], input_ids[rows, : length - 1])
            states.append(hidden_states.flatten(0, 1))
            targets.append(labels[rows, : length - 1].flatten())
        count = None if whole_step is None else whole_step.caption_count
        raw["caption"] = caption_loss(torch.cat(states), self.caption_decoder.head, torch.cat(targets), count=count)
        text_features = self._text_features(input_ids, attention_mask, groups)
        scale = self.logit_scale()
        contrast = contrastive_loss if whole_step is None else whole_step.contrastive_loss
        raw["contrastive"] = contrast(encoded.pooler_output, text_features, scale)
        loss = sum(weights[name] * value for name, value in raw.items())
        losses = {name: value.detach() for name, value in raw.items()}
        losses.update({f"weighted/{name}": weights[name] * value.detach() for name, value in raw.items()})
        learning = [value for value in self.encoder.parameters() if value.requires_grad]
        if measure_gradients and learning:
            for name, value in raw.items():
                gradients = torch.autograd.grad(weights[name] * value, learning, retain_graph=True, allow_unused=True)
                norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
                losses[f"gradient/{name}"] = torch.stack(norms).norm()
        with torch.no_grad():
            power = image_tokens.float().pow(2).mean(dim=(0, 1))
            top = max(1, power.numel() // 100)
            losses["token_rms"] = power.mean().sqrt()
            losses["top1_percent_power"] = power.topk(top).values.sum() / power.sum()
            losses["logit_scale"] = scale.detach()
        return PreTrainingOutput(loss=loss, losses=losses, image_tokens=image_tokens.detach())
