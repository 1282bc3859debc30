"""Joins an encoder and a causal LLM into one multimodal folder.

    python -m mllm.assemble --encoder runs/encoder/autoencoder --llm runs/llm --out runs/mllm
    python -m mllm.assemble --encoder runs/encoder/autoencoder --llm Qwen/Qwen2.5-0.5B-Instruct --out runs/mllm

The result is a stock LlavaForConditionalGeneration with a stock LlavaProcessor and a new connector; every later step
reads and writes such a folder. The encoder is an OpenVision3 autoencoder or encoder, or a CLIP or SigLIP model. The LLM
keeps its dtype, in which the whole folder is saved, its generation config, and a head that is tied to the embeddings.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from encoder import OpenVision3Autoencoder, OpenVision3AutoencoderConfig, OpenVision3Config
from encoder.lineage import weights_hash, write_parents
from mllm.conversation import image_placeholder, image_token
from mllm.language_model import check_same_logits, load_llm, refuse

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
        image_token=image_placeholder(tokenizer),
        num_additional_image_tokens=num_additional,
        chat_template=tokenizer.chat_template,
    )


def assemble(encoder: Path, llm: str | Path, out: Path, seed: int = 0) -> LlavaForConditionalGeneration:
    """Builds and saves the folder; returns the model, which is in the dtype of the LLM.

    Args:
        llm: a folder or the id of a hub model.

    Raises:
        ValueError: there is no encoder or LLM there, or the LLM does more than a multimodal model can hold.
    """
    torch.manual_seed(seed)
    tower = load_tower(encoder)
    language_model, tokenizer = load_llm(llm)
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
    # Built in the LLM's dtype and not cast to it: .to() would also round the rotary frequencies.
    model = AutoModelForImageTextToText.from_config(config, dtype=language_model.dtype).eval()
    if type(model.model.language_model) is not type(language_model.base_model):
        refuse(language_model, llm, "is built otherwise as a part of a multimodal model")
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language_model.base_model.state_dict())
    model.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
    model.generation_config = language_model.generation_config
    check_same_logits(model, language_model, llm)
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
    parser.add_argument("--llm", required=True, help="folder of a causal LLM with its tokenizer, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the connector's first weights")
    args = parser.parse_args(argv)
    assemble(args.encoder, args.llm, args.out, args.seed)


if __name__ == "__main__":
    from training.cli import run_cli  # here, since demo.assemble uses this module without training

    run_cli(main)
