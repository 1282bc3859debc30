"""The two text towers of pre-training: a bidirectional text encoder and a caption decoder over an image prefix."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoder.layers import LAYER_NORM_EPS, Block, StrictLoading, init_weights

# Base and large are OpenVision's text towers beside a vision tower of that size; tiny is ours.
TEXT_PRESETS = {
    "tiny": dict(hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768),
    "base": dict(hidden_size=512, num_hidden_layers=12, num_attention_heads=8, intermediate_size=2048),
    "large": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
}


class OpenVision3TextConfig(PretrainedConfig):
    """Sizes of a text tower. `projection_dim` is the width of the pooled vector, the encoder's own."""

    model_type = "openvision3_text"

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        intermediate_size: int = 2048,
        max_position_embeddings: int = 128,
        projection_dim: int = 768,
        pad_token_id: int = 0,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.projection_dim = projection_dim
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        super().__init__(**kwargs)


class TextEncoder(StrictLoading, PreTrainedModel):
    """Text -> states for a generator and one pooled vector for contrast. No causal mask; padding is not attended to."""

    config_class = OpenVision3TextConfig
    base_model_prefix = "text_encoder"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: OpenVision3TextConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        self.layers = _blocks(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)
        if isinstance(module, TextEncoder):
            nn.init.normal_(module.position_embedding, std=0.01)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.token_embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        """input_ids [batch, length] (padded on the right), attention_mask [batch, length], 1 where there is text.

        Returns:
            last_hidden_state [batch, length, hidden_size] after the last norm; pooler_output [batch, projection_dim],
            read at the last token of each text.

        Raises:
            ValueError: the text is longer than max_position_embeddings.
        """
        batch, length = input_ids.shape
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"The text has {length} tokens and the text encoder takes "
                f"{self.config.max_position_embeddings}; shorten it."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden_states = self.token_embedding(input_ids) + self.position_embedding[:length]
        mask = attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        hidden_states = self.norm(hidden_states)
        last = attention_mask.sum(dim=1).clamp(min=1) - 1
        pooled = self.proj(hidden_states[torch.arange(batch, device=last.device), last])
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class CaptionDecoder(nn.Module):
    """Predicts captions from image tokens, teacher-forced: a prefix language model without text positions of its own.

    Image rows attend to image rows only; text row i attends to the image and to text rows up to i.
    """

    def __init__(self, config: OpenVision3TextConfig, token_size: int) -> None:
        super().__init__()
        self.config = config
        self.image_projection = nn.Linear(token_size, config.hidden_size, bias=False)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        self.layers = _blocks(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(init_weights)
        nn.init.normal_(self.position_embedding, std=0.01)

    def hidden_states(self, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
        """image_tokens [batch, num_patches, token_size], input_ids [batch, length] -> [batch, length, hidden_size].

        Raises:
            ValueError: the caption is longer than max_position_embeddings.
        """
        prefix, length = image_tokens.shape[1], input_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"The caption has {length} tokens and the caption decoder takes "
                f"{self.config.max_position_embeddings}; shorten it."
            )
        tokens = F.layer_norm(image_tokens, image_tokens.shape[-1:], eps=LAYER_NORM_EPS)
        text = self.token_embedding(input_ids) + self.position_embedding[:length]
        hidden_states = torch.cat([self.image_projection(tokens), text], dim=1)
        mask = prefix_mask(prefix, length, image_tokens.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return self.norm(hidden_states[:, prefix:])

    def forward(self, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
        """-> logits [batch, length, vocab_size]; the row of token i predicts token i + 1."""
        return self.head(self.hidden_states(image_tokens, input_ids))

    @torch.no_grad()
    def generate(self, image_tokens: Tensor, bos_token_id: int, eos_token_id: int, max_length: int = 64) -> Tensor:
        """Greedy captions: ids [batch, <= max_length], beginning with bos, ended by eos and then pad_token_id."""
        input_ids = torch.full((image_tokens.shape[0], 1), bos_token_id, device=image_tokens.device)
        done = torch.zeros(image_tokens.shape[0], dtype=torch.bool, device=image_tokens.device)
        while input_ids.shape[1] < min(max_length, self.config.max_position_embeddings) and not done.all():
            following = self.head(self.hidden_states(image_tokens, input_ids)[:, -1]).argmax(dim=-1)
            following = following.masked_fill(done, self.config.pad_token_id)
            input_ids = torch.cat([input_ids, following[:, None]], dim=1)
            done |= following == eos_token_id
        return input_ids


def prefix_mask(prefix: int, length: int, device: torch.device) -> Tensor:
    """bool [prefix + length, prefix + length], true where the row may attend to the column."""
    mask = torch.ones(prefix + length, prefix + length, dtype=torch.bool, device=device).tril()
    mask[:, :prefix] = True
    return mask


def _blocks(config: OpenVision3TextConfig) -> nn.ModuleList:
    return nn.ModuleList(
        Block(config.hidden_size, config.num_attention_heads, config.intermediate_size, approximate="tanh")
        for _ in range(config.num_hidden_layers)
    )
