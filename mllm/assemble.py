"""Joins an encoder and a causal LLM into one multimodal folder.

    python -m mllm.assemble --encoder runs/encoder/autoencoder --llm runs/llm --out runs/mllm

The result is a stock LlavaForConditionalGeneration with a stock LlavaProcessor and a new connector; every later step
reads and writes such a folder. The encoder is an OpenVision3 autoencoder or encoder, or a CLIP or SigLIP model.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from encoder import OpenVision3Autoencoder, OpenVision3AutoencoderConfig, OpenVision3Config
from encoder.lineage import weights_hash, write_parents
from mllm.conversation import IMAGE, image_token

# Stock Llava puts a bias-free linear head on the LLM; an LLM that does more there must give the same logits anyway.
LOGIT_TOLERANCE = 1e-4
# Tokens louder than this are normalised before the connector (design of this project; CLIP's are about 1).
MAX_TOKEN_RMS = 4.0


def load_tower(folder: Path) -> PreTrainedModel:
    """The frozen vision tower of an encoder folder, VAE inside."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"There is no encoder at {folder}; give a folder with a config.json.")
    if isinstance(AutoConfig.from_pretrained(folder), OpenVision3AutoencoderConfig):
        autoencoder = OpenVision3Autoencoder.from_pretrained(folder)
        return autoencoder.encoder.attach_vae(autoencoder.vae).eval()
    tower = AutoModel.from_pretrained(folder)
    return getattr(tower, "vision_model", tower).eval()


@torch.no_grad()
def token_scale(tower: PreTrainedModel, image_size: int) -> tuple[float, float]:
    """RMS of the tower's tokens on a smooth random picture, and how many times the loudest channel exceeds the RMS."""
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(image_size, image_size), mode="bicubic").clamp(-1, 1)
    tokens = tower(pictures, output_hidden_states=True).hidden_states[-1]
    channels = tokens.pow(2).mean(dim=(0, 1)).sqrt()
    rms = tokens.pow(2).mean().sqrt()
    return rms.item(), (channels.max() / rms).item()


def build_processor(
    tokenizer: PreTrainedTokenizerBase, image_size: int, patch_size: int, num_additional: int
) -> LlavaProcessor:
    """A stock processor whose pictures come out as the tower expects them: square, [-1, 1], no crop."""
    size = {"height": image_size, "width": image_size}
    images = LlavaImageProcessorPil(
        do_resize=True,
        size=size,
        do_center_crop=False,
        crop_size=size,
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        num_additional_image_tokens=num_additional,
        chat_template=tokenizer.chat_template,
    )


@torch.no_grad()
def check_same_logits(model: LlavaForConditionalGeneration, llm: PreTrainedModel, name: str) -> None:
    """Refuses an LLM whose own logits differ from those of the stock head on it."""
    ids = torch.arange(3, 19)[None] % llm.config.vocab_size
    difference = (model(input_ids=ids).logits - llm(input_ids=ids).logits).abs().max().item()
    if not difference <= LOGIT_TOLERANCE:
        raise ValueError(
            f"The LLM {name} ({type(llm).__name__}) does more in its head than a linear layer: text-only logits "
            f"differ by {difference:.2g}; choose a Llama, Qwen, Gemma, GPT-NeoX or OLMo2."
        )


def assemble(encoder: Path, llm: Path, out: Path, seed: int = 0) -> LlavaForConditionalGeneration:
    """Builds and saves the folder; returns the model."""
    torch.manual_seed(seed)
    tower = load_tower(encoder)
    if not (llm / "config.json").is_file():
        raise ValueError(f"There is no LLM at {llm}; give a folder with a config.json.")
    language_model = AutoModelForCausalLM.from_pretrained(llm).eval()
    head = language_model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ValueError(
            f"The LLM {llm} ({type(language_model).__name__}) has no bias-free linear head, which a multimodal "
            "model needs; choose a Llama, Qwen, Gemma, GPT-NeoX or OLMo2."
        )
    tokenizer = AutoTokenizer.from_pretrained(llm)
    if image_token(tokenizer) == len(tokenizer):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        if len(tokenizer) > language_model.config.vocab_size:
            language_model.resize_token_embeddings(len(tokenizer))
    size = tower.config.image_size
    rms, outlier = token_scale(tower, size)
    print(f"image tokens: RMS {rms:.2f}, loudest channel {outlier:.1f} x RMS")
    if rms > MAX_TOKEN_RMS and isinstance(tower.config, OpenVision3Config):
        print(f"RMS above {MAX_TOKEN_RMS}: the tower ends in a LayerNorm without parameters (normalize_tokens)")
        tower.config.normalize_tokens = True
    ours = isinstance(tower.config, OpenVision3Config)
    num_patches = (size // tower.config.patch_size) ** 2
    has_class_token = not ours and "clip" in tower.config.model_type
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language_model.config,
        image_token_id=image_token(tokenizer),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if has_class_token else "full",
        image_seq_length=num_patches,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(getattr(language_model.config, "tie_word_embeddings", False)),
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language_model.base_model.state_dict())
    model.lm_head.load_state_dict(head.state_dict())
    check_same_logits(model, language_model, str(llm))
    processor = build_processor(tokenizer, size, tower.config.patch_size, 0)
    if has_class_token:
        processor.vision_feature_select_strategy = "default"
        processor.num_additional_image_tokens = 1
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    write_parents(out, {"encoder": weights_hash(encoder)})
    print(f"{num_patches} image tokens of width {tower.config.hidden_size} -> {out}")
    return model


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mllm.assemble", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the frozen vision encoder")
    parser.add_argument("--llm", type=Path, required=True, help="folder of a causal LLM with its tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the connector's first weights")
    args = parser.parse_args(argv)
    assemble(args.encoder, args.llm, args.out, args.seed)


if __name__ == "__main__":
    from training.cli import run_cli  # here, since demo.assemble uses this module without training

    run_cli(main)
