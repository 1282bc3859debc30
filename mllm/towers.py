"""The frozen vision tower of a multimodal LLM: an OpenVision 3 encoder, or a CLIP or SigLIP model as a baseline.

A baseline sees as it was trained: its own picture size, mean and std, and the layer that LLaVA reads.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from encoder import OpenVision3Autoencoder, OpenVision3AutoencoderConfig, OpenVision3Config

# Tokens louder than this are normalised before the connector (design of this project; CLIP's are about 1).
MAX_TOKEN_RMS = 4.0
BASELINES = ("clip_vision_model", "siglip_vision_model")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass
class Tower:
    """A vision model with what stock Llava must know of it.

    Attributes:
        model: takes pixel_values, returns hidden_states.
        images: pictures -> pixel_values [num_images, 3, image_size, image_size], as the model was trained on.
        layer: index into hidden_states; -2 for CLIP (LLaVA-1.5) and SigLIP (LLaVA-NeXT deletes the last layer).
        class_tokens: tokens in front of the patches', which the connector does not see.
    """

    model: PreTrainedModel
    images: LlavaImageProcessorPil
    layer: int
    class_tokens: int

    @property
    def strategy(self) -> str:
        """`vision_feature_select_strategy` of Llava's config and processor."""
        return "default" if self.class_tokens else "full"

    @property
    def num_patches(self) -> int:
        return (self.model.config.image_size // self.model.config.patch_size) ** 2


def load_tower(folder: Path) -> Tower:
    """The tower of an encoder folder in float32: an OpenVision3 autoencoder or encoder, CLIP or SigLIP.

    An OpenVision3 encoder brings its VAE; where its tokens are louder than MAX_TOKEN_RMS it is told to normalise them.

    Raises:
        ValueError: there is no encoder in the folder, it is of another kind, or its image processor makes pictures of
            another size than it takes.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"There is no encoder at {folder}; give a folder with a config.json.")
    config = AutoConfig.from_pretrained(folder)
    if isinstance(config, OpenVision3AutoencoderConfig):
        autoencoder = OpenVision3Autoencoder.from_pretrained(folder, dtype=torch.float32)
        model = autoencoder.encoder.attach_vae(autoencoder.vae)
    else:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        model = getattr(model, "vision_model", model)
    kind, size = model.config.model_type, model.config.image_size
    if isinstance(model.config, OpenVision3Config):
        square = {"height": size, "width": size}
        half = [0.5] * 3
        images = LlavaImageProcessorPil(
            size=square, crop_size=square, do_center_crop=False, image_mean=half, image_std=half
        )
        tower = Tower(model.eval(), images, layer=-1, class_tokens=0)
        quieten(tower)
        return tower
    if kind not in BASELINES:
        raise ValueError(f"The encoder at {folder} is a {kind}; give an OpenVision 3 encoder, CLIP or SigLIP.")
    images = baseline_images(folder, kind, size)
    made = images(Image.new("RGB", (size, 2 * size)), return_tensors="pt")["pixel_values"].shape
    if made != (1, 3, size, size):
        raise ValueError(
            f"The image processor at {folder} makes pictures of {made[2]}x{made[3]} pixels and the encoder takes "
            f"{size}x{size}; correct size and crop_size in its preprocessor_config.json."
        )
    return Tower(model.eval(), images, layer=-2, class_tokens=int(kind == "clip_vision_model"))


def baseline_images(folder: Path, kind: str, size: int) -> LlavaImageProcessorPil:
    """The folder's own image processor, or the published one of its kind at `size` pixels, as Llava's class.

    Llava's processors and servers ask for a crop_size, which SigLIP's class lacks; the pixels are the same.
    """
    square = {"height": size, "width": size}
    if any((folder / name).is_file() for name in PROCESSOR_FILES):
        own = AutoImageProcessor.from_pretrained(folder, backend="pil")
    elif kind == "clip_vision_model":
        own = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)
    else:
        own = SiglipImageProcessorPil(size=square)
    settings = {"do_center_crop": False, "crop_size": square, **own.to_dict()}
    return LlavaImageProcessorPil(**{key: value for key, value in settings.items() if key != "image_processor_type"})


def quieten(tower: Tower) -> None:
    """Prints how loud the tokens are and turns on `normalize_tokens` where that is too much for a new connector."""
    rms, outlier = token_scale(tower.model)
    print(f"image tokens: RMS {rms:.2f}, loudest channel {outlier:.1f} x RMS")
    if rms > MAX_TOKEN_RMS:
        print(f"RMS above {MAX_TOKEN_RMS}: the tower ends in a LayerNorm without parameters (normalize_tokens)")
        tower.model.config.normalize_tokens = True


@torch.no_grad()
def token_scale(model: PreTrainedModel) -> tuple[float, float]:
    """RMS of the tower's tokens on a smooth random picture, and how many times the loudest channel exceeds the RMS."""
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(model.config.image_size,) * 2, mode="bicubic").clamp(-1, 1)
    tokens = model(pictures, output_hidden_states=True).hidden_states[-1]
    channels = tokens.pow(2).mean(dim=(0, 1)).sqrt()
    rms = tokens.pow(2).mean().sqrt()
    return rms.item(), (channels.max() / rms).item()
