"""The trained encoder as its consumers use it: pictures to tokens, tokens to pictures, captions and scores."""

import inspect
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from encoder.decoder import LatentDecoder
from encoder.layers import StrictLoading
from encoder.model import OpenVision3Config, OpenVision3Model
from encoder.open_clip import CONFIG_FILE
from encoder.pretraining import OpenVision3ForPreTraining
from encoder.text import CaptionDecoder, OpenVision3TextConfig, TextEncoder
from encoder.vae import decode, encode, load_vae


class OpenVision3AutoencoderConfig(PretrainedConfig):
    """Keyword arguments of the parts; `text` is None for an autoencoder without text towers.

    untrained: which of text_encoder and caption_decoder were not trained, their loss having had no weight.
    """

    model_type = "openvision3_autoencoder"

    def __init__(
        self,
        encoder: dict | None = None,
        decoder: dict | None = None,
        vae: dict | None = None,
        text: dict | None = None,
        untrained: list[str] | None = None,
        **kwargs,
    ) -> None:
        self.encoder = encoder or {}
        self.decoder = decoder or {}
        self.vae = vae or {}
        self.text = text
        self.untrained = untrained or []
        super().__init__(**kwargs)


class OpenVision3Autoencoder(StrictLoading, PreTrainedModel):
    """Encoder, latent decoder, VAE and, where they were trained, both text towers. Everything is frozen.

    `encode` returns and `decode` takes raw image_tokens [batch, num_patches, hidden_size].
    """

    config_class = OpenVision3AutoencoderConfig
    base_model_prefix = "autoencoder"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: OpenVision3AutoencoderConfig) -> None:
        super().__init__(config)
        encoder = OpenVision3Config(**config.encoder)
        self.encoder = OpenVision3Model(encoder)
        self.latent_decoder = LatentDecoder(
            encoder.hidden_size, encoder.latent_channels, encoder.latent_patch_size, **config.decoder
        )
        self.vae = AutoencoderKL.from_config(config.vae)
        self.text_encoder = self.caption_decoder = None
        if config.text is not None:
            text = OpenVision3TextConfig(**config.text)
            self.text_encoder = TextEncoder(text)
            self.caption_decoder = CaptionDecoder(text, encoder.hidden_size)
        self.post_init()
        self.eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from training; each part has initialised itself."""

    def train(self, mode: bool = True) -> "OpenVision3Autoencoder":
        """Stays frozen and in eval mode whatever is asked: consumers train around it, and decoding adds no noise."""
        return super().train(False).requires_grad_(False)

    @classmethod
    def from_pretraining(cls, model: OpenVision3ForPreTraining, vae: AutoencoderKL) -> "OpenVision3Autoencoder":
        """Copies the weights of a pre-trained model and its VAE. The VAE's float32 weights travel with the folder."""
        captions = model.config.understanding_weight
        weights = {"text_encoder": captions * model.config.contrastive_weight, "caption_decoder": captions}
        config = OpenVision3AutoencoderConfig(
            untrained=[name for name, weight in weights.items() if weight == 0],
            encoder=model.config.encoder,
            text=model.config.text,
            decoder={
                **model.config.decoder,
                "noise_tau": model.config.noise_tau,
                "noise_space": model.config.noise_space,
            },
            vae=_settings(vae),
        )
        names = ("encoder", "latent_decoder", "text_encoder", "caption_decoder")
        return cls._of_parts(config, vae=vae, **{name: getattr(model, name) for name in names})

    @classmethod
    def from_frozen_encoder(
        cls, encoder: OpenVision3Model, latent_decoder: LatentDecoder, decoder: dict, vae: AutoencoderKL
    ) -> "OpenVision3Autoencoder":
        """Copies the weights of an encoder and of the latent decoder trained for it; there are no text towers.

        decoder: the keyword arguments that latent_decoder was made with, beside the sizes that the encoder gives.
        """
        names = inspect.signature(OpenVision3Config.__init__).parameters.keys() - {"self", "kwargs", "vae_config"}
        config = OpenVision3AutoencoderConfig(
            encoder={name: getattr(encoder.config, name) for name in sorted(names)}, decoder=decoder, vae=_settings(vae)
        )
        return cls._of_parts(config, vae=vae, encoder=encoder, latent_decoder=latent_decoder)

    @classmethod
    def _of_parts(cls, config: OpenVision3AutoencoderConfig, **parts: nn.Module) -> "OpenVision3Autoencoder":
        own = cls(config)
        for name, part in parts.items():
            getattr(own, name).load_state_dict(part.state_dict())
        return own

    @property
    def patch_size(self) -> int:
        """Side of a token's patch in pixels."""
        return self.encoder.config.patch_size

    @property
    def image_size(self) -> int:
        """Side of the pictures of the last training stage, in pixels."""
        return self.encoder.config.image_size

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [batch, 3, height, width] in [-1, 1] -> image_tokens [batch, num_patches, hidden_size]."""
        return self.encode_latents(encode(self.vae, pixel_values))

    @torch.no_grad()
    def encode_latents(self, latents: Tensor) -> Tensor:
        """latents [batch, 16, height/8, width/8], as cached -> image_tokens [batch, num_patches, hidden_size]."""
        return self.encoder(latents=latents).last_hidden_state

    @torch.no_grad()
    def decode(self, image_tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """image_tokens -> pixel_values [batch, 3, height, width], about [-1, 1]; grid (rows, columns), None: square."""
        return decode(self.vae, self.latent_decoder(image_tokens, grid))

    def pool(self, image_tokens: Tensor) -> Tensor:
        """image_tokens -> [batch, projection_dim], the encoder's own pooling."""
        return self.encoder.pool(image_tokens)

    def image_features(self, image_tokens: Tensor) -> Tensor:
        """image_tokens -> contrastive vectors [batch, projection_dim], normalised."""
        return F.normalize(self.pool(image_tokens), dim=-1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask [batch, length] -> contrastive vectors [batch, projection_dim], normalised."""
        self.need_text("text_encoder")
        return F.normalize(self.text_encoder(input_ids, attention_mask).pooler_output, dim=-1)

    @torch.no_grad()
    def caption(self, image_tokens: Tensor, max_length: int = 64) -> Tensor:
        """image_tokens -> greedy caption ids [batch, <= max_length]."""
        self.need_text("caption_decoder")
        text = self.caption_decoder.config
        return self.caption_decoder.generate(image_tokens, text.bos_token_id, text.eos_token_id, max_length)

    @torch.no_grad()
    def caption_log_prob(self, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean log p of each caption's tokens given the picture: [batch]. input_ids begin with bos and end with eos."""
        self.need_text("caption_decoder")
        logits = self.caption_decoder(image_tokens, input_ids[:, :-1])
        log_probs = logits.log_softmax(dim=-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
        mask = attention_mask[:, 1:].to(log_probs)
        return (log_probs * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def need_text(self, head: str) -> None:
        """head: text_encoder or caption_decoder.

        Raises:
            ValueError: it is absent or was not trained.
        """
        if self.text_encoder is None:
            raise ValueError("This autoencoder has no text towers; use one exported by encoder.train.")
        if head in self.config.untrained:
            raise ValueError(f"This autoencoder's {head} was not trained: its loss had weight 0; use another one.")


def _settings(vae: AutoencoderKL) -> dict:
    return {key: value for key, value in vae.config.items() if not key.startswith("_")}


def load_autoencoder(folder: str | Path) -> OpenVision3Autoencoder:
    """The autoencoder of a folder, ready to use.

    Raises:
        ValueError: there is no such folder, or an encoder without a decoder is in it.
    """
    config_file = Path(folder) / "config.json"
    kind = json.loads(config_file.read_text()).get("model_type") if config_file.is_file() else None
    if (Path(folder) / CONFIG_FILE).is_file() or kind == OpenVision3Config.model_type:
        raise ValueError(
            f"{folder} holds an encoder without a latent decoder; train one for it: python -m encoder.train_decoder "
            f"encoder/recipes/decoder_for_released.yaml encoder={folder}"
        )
    if kind is None:
        raise ValueError(f"There is no autoencoder at {folder}; name the folder that encoder.train exported.")
    return OpenVision3Autoencoder.from_pretrained(folder).eval()


def load_encoder(path: str, vae: Path | None = None) -> OpenVision3Model:
    """The encoder of an open_clip folder or hub id, of our encoder's folder, or of an autoencoder's (with its VAE).

    Raises:
        ValueError: the folder's config.json is of something else.
    """
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        model = OpenVision3Model.from_open_clip(path)
    else:
        kind = json.loads(config_file.read_text()).get("model_type")
        if kind == OpenVision3Model.config_class.model_type:
            model = OpenVision3Model.from_pretrained(path)
        elif kind == OpenVision3Autoencoder.config_class.model_type:
            whole = OpenVision3Autoencoder.from_pretrained(path)
            model = whole.encoder.attach_vae(whole.vae)
        else:
            raise ValueError(
                f"{path} holds no encoder (model_type {kind}); give an encoder's or an autoencoder's folder."
            )
    return (model if vae is None else model.attach_vae(load_vae(vae))).eval()
