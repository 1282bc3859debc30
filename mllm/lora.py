"""LoRA on the LLM of a multimodal model, and the LLM in four bits underneath (QLoRA)."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration, ProcessorMixin

CONNECTOR = "multi_modal_projector"
NOT_THE_LLM = ["model.vision_tower", f"model.{CONNECTOR}", "lm_head"]


def add_lora(model: LlavaForConditionalGeneration, settings: dict[str, Any]) -> PeftModel:
    """Puts adapters on the LLM's linear layers, in place; they and a copy of the connector are what learns then.

    Args:
        settings: keyword arguments of peft.LoraConfig; without `target_modules`, every linear layer of the LLM.

    Raises:
        ValueError: LoraConfig does not know one of the settings, or it is one of those that are fixed here.
    """
    fixed = {"exclude_modules": rf"({'|'.join(NOT_THE_LLM)})(\..*)?", "modules_to_save": [CONNECTOR]}
    for key in fixed.keys() & settings.keys():
        raise ValueError(f"lora.{key} is set by mllm.train itself; remove it from the recipe.")
    try:
        config = LoraConfig(**{"target_modules": "all-linear", **settings, **fixed})
    except TypeError as error:
        raise ValueError(f"The lora block of the recipe is not accepted: {error}.") from error
    return get_peft_model(model, config, autocast_adapter_dtype=False)  # the trainer decides: DeepSpeed wants one dtype


def save_adapter(adapter: PeftModel, processor: ProcessorMixin, folder: str | Path) -> None:
    """Writes what was trained, the processor, and the config that names the conversation template."""
    adapter.save_pretrained(folder, save_embedding_layers=False)
    adapter.get_base_model().config.save_pretrained(folder)
    processor.save_pretrained(folder)


def four_bits(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's NF4 with double quantisation, of the LLM's linear layers alone."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=NOT_THE_LLM,
    )
