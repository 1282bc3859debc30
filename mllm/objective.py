"""What the trainer sees of a multimodal LLM: connector, LLM and head; the frozen tower stays outside."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from mllm.conversation import IGNORED


class MultimodalObjective(nn.Module):
    """Next-token loss of a LlavaForConditionalGeneration on the trained tokens of a batch.

    Args:
        model: the assembled model. Its tower is no submodule here: it is never trained, moved twice or saved.
        cached: batches hold the tower's tokens [num_images, num_patches, hidden_size] instead of pixel_values.
    """

    def __init__(self, model: LlavaForConditionalGeneration, cached: bool) -> None:
        super().__init__()
        self.connector = model.model.multi_modal_projector
        self.llm = model.model.language_model
        self.head = model.lm_head
        self.image_token_id = model.config.image_token_id
        self._tower: Callable[[Tensor], Tensor] | None = None if cached else tower_tokens(model)

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, images: Tensor) -> dict:
        """input_ids, labels, attention_mask [batch, length]; images: tower tokens or pixel_values, see `cached`."""
        if self._tower is not None:
            images = self._tower(images)
        image_embeds = self.connector(images)
        inputs_embeds = self.llm.get_input_embeddings()(input_ids)
        places = input_ids == self.image_token_id
        if places.any():
            inputs_embeds = inputs_embeds.masked_scatter(places[..., None], image_embeds.to(inputs_embeds.dtype))
        else:  # the dummy picture of a text-only batch: in the graph, without effect
            inputs_embeds = inputs_embeds + 0.0 * image_embeds.sum()
        hidden_states = self.llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask).last_hidden_state
        loss = trained_positions_loss(hidden_states, self.head, labels)
        return {"loss": loss, "losses": {"next_token": loss.detach()}}


class LanguageObjective(nn.Module):
    """Next-token loss of a causal LLM on text alone."""

    def __init__(self, llm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.llm, self.head = llm, head

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> dict:
        hidden_states = self.llm(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        loss = trained_positions_loss(hidden_states, self.head, labels)
        return {"loss": loss, "losses": {"next_token": loss.detach()}}


def trained_positions_loss(hidden_states: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the positions that have a label; the head never sees the others.

    With a vocabulary of 150,000 words the logits of masked positions would dominate memory. Equal to the full loss.
    """
    targets = labels[:, 1:]
    rows = targets != IGNORED
    logits = head(hidden_states[:, :-1][rows]).float()
    return F.cross_entropy(logits, targets[rows])


def tower_tokens(model: LlavaForConditionalGeneration) -> Callable[[Tensor], Tensor]:
    """pixel_values [num_images, 3, height, width] -> what the connector takes, without gradient."""
    layer, strategy = model.config.vision_feature_layer, model.config.vision_feature_select_strategy

    @torch.no_grad()
    def encode(pixel_values: Tensor) -> Tensor:
        tokens = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states[layer]
        return tokens if strategy == "full" else tokens[:, 1:]

    return encode
