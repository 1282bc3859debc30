"""Joins an encoder and a causal LLM into one multimodal folder.

    python -m mllm.assemble --encoder runs/encoder/autoencoder --llm runs/llm --out runs/mllm
    python -m mllm.assemble --encoder runs/encoder/autoencoder --llm Qwen/Qwen2.5-0.5B-Instruct --out runs/mllm

The result is a stock LlavaForConditionalGeneration with a stock LlavaProcessor and a new connector; every later step
reads and writes such a folder. The encoder is an OpenVision3 autoencoder or encoder, or a CLIP or SigLIP model, which
keeps its own mean and std and is read at LLaVA's layer -2. The LLM keeps its dtype, in which the whole folder is saved,
its generation config, and a head that is tied to the embeddings.

With --anyres it is a stock LlavaNextForConditionalGeneration, which sees a picture whole and in 2 to 4 tiles of the
encoder's size. mllm.chat and mllm.serve take it; mllm.train does not train it yet.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from encoder.lineage import weights_hash, write_parents
from mllm.conversation import image_placeholder, image_token
from mllm.language_model import check_same_logits, load_llm, refuse
from mllm.towers import Tower, load_tower

# LLaVA-NeXT's grids: heights and widths in tiles.
TILES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))

Multimodal = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration


def grids(tower: Tower) -> list[list[int]]:
    """`image_grid_pinpoints`: heights and widths in pixels that AnyRes fits a picture into."""
    size = tower.model.config.image_size
    return [[height * size, width * size] for height, width in TILES]


def join(
    tower: Tower, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | Path, anyres: bool = False
) -> Multimodal:
    """The multimodal model that tower and LLM become parts of, with a new connector, in the LLM's dtype.

    Raises:
        ValueError: a multimodal model would build the LLM `name` otherwise.
    """
    settings = {
        "vision_config": tower.model.config,
        "text_config": llm.config,
        "image_token_id": image_token(tokenizer),
        "vision_feature_layer": tower.layer,
        "vision_feature_select_strategy": tower.strategy,
        "image_seq_length": tower.num_patches,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": bool(getattr(llm.config, "tie_word_embeddings", False)),
    }
    with torch.device("meta"):  # the parts' weights are taken over, not copied: an LLM may fill the memory
        if anyres:
            config = LlavaNextConfig(**settings, image_grid_pinpoints=grids(tower))
            model = LlavaNextForConditionalGeneration._from_config(config, dtype=llm.dtype)
        else:
            model = LlavaForConditionalGeneration._from_config(LlavaConfig(**settings), dtype=llm.dtype)
    if type(model.model.language_model) is not type(llm.base_model):
        refuse(llm, name, "is built otherwise as a part of a multimodal model")
    model.model.vision_tower = tower.model.to(llm.dtype)
    model.model.language_model = llm.base_model
    model.lm_head = llm.get_output_embeddings()
    model.model.multi_modal_projector.to_empty(device="cpu").apply(model._init_weights)
    if anyres:  # as LlavaNextModel makes it
        width = llm.config.hidden_size
        model.model.image_newline = torch.nn.Parameter(torch.randn(width, dtype=llm.dtype) * width**-0.5)
    model.generation_config = llm.generation_config
    return model.eval()


def build_processor(
    tower: Tower, tokenizer: PreTrainedTokenizerBase, anyres: bool = False
) -> LlavaProcessor | LlavaNextProcessor:
    """A stock processor whose pictures come out as the tower expects them."""
    images = tower.images
    if anyres:
        own = {key: value for key, value in images.to_dict().items() if key != "image_processor_type"}
        images = LlavaNextImageProcessorPil(**{**own, "do_pad": True}, image_grid_pinpoints=grids(tower))
    return (LlavaNextProcessor if anyres else LlavaProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower.model.config.patch_size,
        vision_feature_select_strategy=tower.strategy,
        image_token=image_placeholder(tokenizer),
        num_additional_image_tokens=tower.class_tokens,
        chat_template=tokenizer.chat_template,
    )


def assemble(encoder: Path, llm: str | Path, out: Path, seed: int = 0, anyres: bool = False) -> Multimodal:
    """Builds and saves the folder; returns the model, which is in the dtype of the LLM.

    Args:
        llm: a folder or the id of a hub model.
        anyres: as LLaVA-NeXT, pictures are seen whole and in tiles.

    Raises:
        ValueError: there is no encoder or LLM there, or the LLM does more than a multimodal model can hold.
    """
    tower = load_tower(encoder)
    language_model, tokenizer = load_llm(llm)
    torch.manual_seed(seed)
    model = join(tower, language_model, tokenizer, llm, anyres)
    check_same_logits(model, language_model, llm)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    build_processor(tower, tokenizer, anyres).save_pretrained(out)
    write_parents(out, {"encoder": weights_hash(encoder)})
    print(f"{tower.num_patches} image tokens of width {tower.model.config.hidden_size} -> {out}")
    return model


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mllm.assemble", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the frozen vision encoder")
    parser.add_argument("--llm", required=True, help="folder of a causal LLM with its tokenizer, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the connector's first weights")
    parser.add_argument("--anyres", action="store_true", help="pictures are seen whole and in tiles (LLaVA-NeXT)")
    args = parser.parse_args(argv)
    assemble(args.encoder, args.llm, args.out, args.seed, args.anyres)


if __name__ == "__main__":
    from training.cli import run_cli  # here, since demo.assemble uses this module without training

    run_cli(main)
