"""Reads a published causal LLM and makes it ready to see: a picture token, a pad token, a head like stock Llava's.

Stock Llava is embeddings -> layers -> norm -> a linear head without bias. An LLM that does more (soft caps, scales,
biases) would answer differently inside it and is refused; a probe finds out, so no list of families can go stale.
"""

from pathlib import Path
from typing import NoReturn

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mllm.conversation import IMAGE, image_token

# Special tokens that published text LLMs keep but never use: with one as picture token nothing has to be resized.
SPARE_TOKENS = (
    "<|image_pad|>",  # Qwen 2.5 and 3
    "<|vision_pad|>",
    "<image_soft_token>",  # Gemma 3
    "<|reserved_special_token_0|>",  # Llama 3
    "[control_8]",  # Mistral 0.3
    "<|placeholder1|>",  # Phi 3
    "<unused0>",  # Gemma 1
)
FITTING = "choose a Llama, Qwen, Mistral, SmolLM, Gemma 1 or 3, or OLMo 2"
# The probe's largest logit: at 1 it sees an offset, at 100 a soft cap (Gemma 2 caps at 30).
LOUDNESSES = (1.0, 100.0)


def load_llm(llm: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The LLM of a folder or hub id in its own dtype, and its tokenizer, which has a picture token and a pad token.

    The vocabulary grows by one where the tokenizer has neither `<image>` nor one of SPARE_TOKENS.

    Raises:
        ValueError: there is no such LLM, or its embeddings or head are not as stock Llava needs them.
    """
    if Path(llm).exists() and not (Path(llm) / "config.json").is_file():
        raise ValueError(f"There is no LLM at {llm}; give a folder with a config.json.")
    try:
        config = AutoConfig.from_pretrained(llm)
    except OSError as error:
        raise ValueError(
            f"There is no LLM at {llm}; give a folder with a config.json, or the id of a hub model that can be reached."
        ) from error
    if config.get_text_config() is not config:
        raise ValueError(f"The LLM {llm} ({config.model_type}) is more than a text model; {FITTING}.")
    language_model = AutoModelForCausalLM.from_pretrained(llm).eval()
    check_parts(language_model, llm)
    tokenizer = load_tokenizer(llm)
    size = max(len(tokenizer), image_token(tokenizer) + 1)
    if size > language_model.config.vocab_size:
        language_model.resize_token_embeddings(size)
    return language_model, tokenizer


def load_tokenizer(llm: str | Path) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer with a picture token: its own, else a spare one, else `<image>` added; pad is eos if missing.

    Raises:
        ValueError: it has neither a pad nor an end token.
    """
    tokenizer = AutoTokenizer.from_pretrained(llm)
    if image_token(tokenizer) == len(tokenizer):
        free = tokenizer.get_added_vocab().keys() - set(tokenizer.special_tokens_map.values())
        spare = [name for name in SPARE_TOKENS if name in free and name not in str(tokenizer.chat_template)]
        if spare:
            tokenizer = AutoTokenizer.from_pretrained(llm, image_token=spare[0])
        else:
            tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"The tokenizer of {llm} has neither a pad nor an end token; set eos_token in it.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_parts(llm: PreTrainedModel, name: str | Path) -> None:
    """Refuses an LLM whose head or tied embeddings stock Llava cannot hold.

    Raises:
        ValueError: the head is not linear without bias, or it is tied to embeddings that are not called embed_tokens.
    """
    head = llm.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        refuse(llm, name, "has no bias-free linear head, which a multimodal model needs")
    tied = head.weight is llm.get_input_embeddings().weight
    if tied and getattr(llm.base_model, "embed_tokens", None) is not llm.get_input_embeddings():
        refuse(llm, name, "ties its head to embeddings that are built unlike Llama's, which a saved folder would lose")


@torch.no_grad()
def check_same_logits(model: LlavaForConditionalGeneration, llm: PreTrainedModel, name: str | Path) -> None:
    """Refuses an LLM whose own logits on text differ from those it gives as a part of `model`.

    Both run with their last hidden states scaled so that the largest logit is one of LOUDNESSES; the difference is
    relative to it. As they are, small logits would hide a soft cap and large ones an offset.

    Raises:
        ValueError: the logits differ, or the LLM's inputs or outputs are not those a multimodal model needs.
    """
    ids = torch.arange(3, 19)[None] % llm.config.vocab_size
    head = llm.get_output_embeddings()
    tolerance = max(1e-4, 4 * torch.finfo(llm.dtype).eps)
    for loudness in LOUDNESSES:

        def scale(module, inputs, output, loudness=loudness):
            output.last_hidden_state *= loudness / head(output.last_hidden_state).abs().max()

        hook = llm.base_model.register_forward_hook(scale)  # of both: the LLM's body is a part of the model
        try:
            logits, own = model(input_ids=ids).logits.float(), llm(input_ids=ids).logits.float()
        except (TypeError, AttributeError) as error:
            refuse(llm, name, f"takes other inputs or gives other outputs than Llama ({error})")
        finally:
            hook.remove()
        difference = (logits - own).abs().max().item() / loudness
        if not difference <= tolerance:
            refuse(llm, name, f"does more in its head than a linear layer: logits on text differ by {difference:.2g}")


def refuse(llm: PreTrainedModel, name: str | Path, reason: str) -> NoReturn:
    raise ValueError(f"The LLM {name} ({type(llm).__name__}) {reason}; {FITTING}.")
