"""What the trainer sees of a multimodal LLM: connector, LLM and head; the frozen tower stays outside."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.utils.generic import maybe_autocast

from encoder.pretraining import length_groups
from mllm.conversation import IGNORED

GROUPED_ROWS = 64  # smaller batches pass the LLM whole: it is large then, and ZeRO-3 gathers its weights at every call


class MultimodalObjective(nn.Module):
    """Next-token loss of a LlavaForConditionalGeneration on the trained tokens of a batch.

    Args:
        model: the assembled model. Its tower is no submodule here: it is never trained or saved.
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
        """Args:
            input_ids, labels, attention_mask: [batch, length].
            images: tower tokens or pixel_values, see `cached`; one dummy where no row has a picture.

        Raises:
            ValueError: the rows have another number of image tokens than the pictures.
        """
        if self._tower is not None:
            images = self._tower(images)
        # The tower keeps its own dtype, whatever DeepSpeed makes of the trained parts.
        image_embeds = self.connector(images.to(self.connector.linear_1.weight.dtype))
        inputs_embeds = self.llm.get_input_embeddings()(input_ids)
        places = input_ids == self.image_token_id
        count = int(places.sum())
        num_images, num_patches = image_embeds.shape[:2]
        if count == num_images * num_patches:
            inputs_embeds = inputs_embeds.masked_scatter(places[..., None], image_embeds.to(inputs_embeds.dtype))
        elif count == 0 and num_images == 1:  # the dummy picture: in the graph, without effect
            inputs_embeds = inputs_embeds + 0.0 * image_embeds.sum()
        else:  # masked_scatter would fill a row with the next one's picture
            raise ValueError(
                f"The rows of this batch have {places.sum(dim=1).tolist()} image tokens and its {num_images} pictures "
                f"have {num_patches} each; give every row as many as its pictures have."
            )
        loss = next_token_loss(self.llm, self.head, inputs_embeds, labels, attention_mask)
        return {"loss": loss, "losses": {"next_token": loss.detach()}}


class LanguageObjective(nn.Module):
    """Next-token loss of a causal LLM on text alone."""

    def __init__(self, llm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.llm, self.head = llm, head

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> dict:
        inputs_embeds = self.llm.get_input_embeddings()(input_ids)
        loss = next_token_loss(self.llm, self.head, inputs_embeds, labels, attention_mask)
        return {"loss": loss, "losses": {"next_token": loss.detach()}}


def next_token_loss(
    llm: nn.Module, head: nn.Module, inputs_embeds: Tensor, labels: Tensor, attention_mask: Tensor
) -> Tensor:
    """Mean cross-entropy of the positions that have a label, equal to the full loss.

    Rows of like length pass the LLM together, so that short ones are not padded to the longest of the batch. The head
    sees trained positions only: with a vocabulary of 150,000 words the logits of the others would dominate memory.

    Args:
        inputs_embeds: [batch, length, width], padded on the right.
        labels, attention_mask: [batch, length].
    """
    whole = [(torch.arange(len(labels), device=labels.device), labels.shape[1])]
    groups = length_groups(attention_mask) if len(labels) >= GROUPED_ROWS else whole
    states, targets = [], []
    for rows, length in groups:
        hidden_states = llm(
            inputs_embeds=inputs_embeds[rows, :length], attention_mask=attention_mask[rows, :length], use_cache=False
        ).last_hidden_state
        following = labels[rows, 1:length]
        trained = following != IGNORED
        states.append(hidden_states[:, :-1][trained])
        targets.append(following[trained])
    # A head that does not learn keeps its dtype, whatever the LLM before it has.
    return F.cross_entropy(head(torch.cat(states).to(head.weight.dtype)).float(), torch.cat(targets))


def tower_tokens(model: LlavaForConditionalGeneration) -> Callable[[Tensor], Tensor]:
    """pixel_values [num_images, 3, height, width] -> what the connector takes, without gradient."""
    layer, strategy = model.config.vision_feature_layer, model.config.vision_feature_select_strategy

    @torch.no_grad()
    def encode(pixel_values: Tensor) -> Tensor:
        tower = model.model.vision_tower.to(pixel_values.device)  # outside the objective, so no one else moves it
        # Without autocast, as it computes when the model is used.
        with maybe_autocast(pixel_values.device.type, enabled=False):
            tokens = tower(pixel_values.to(tower.dtype), output_hidden_states=True).hidden_states[layer]
        return tokens if strategy == "full" else tokens[:, 1:]

    return encode
