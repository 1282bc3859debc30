"""CLIP and SigLIP as towers: pixels of their own image processor, tokens of the layer that LLaVA reads."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mllm import ChatModel
from mllm.assemble import assemble, join
from mllm.language_model import load_llm
from mllm.objective import tower_tokens
from mllm.towers import load_tower

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 48, "patch_size": 16}  # 9 patches
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 2}
SQUARE = {"height": 48, "width": 48}
CLIP_48 = {"size": {"shortest_edge": 48}, "crop_size": SQUARE}
OWN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.8, 0.9]}
# name: the model, its image processor, whether that is saved beside it, tokens in front of the patches'
BASELINES = {
    "clip as published": (CLIPVisionModel, CLIPVisionConfig(**VISION), CLIPImageProcessorPil(**CLIP_48), False, 1),
    "clip with a mean of its own": (
        CLIPModel,
        CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=8),
        CLIPImageProcessorPil(**CLIP_48, **OWN),
        True,
        1,
    ),
    "siglip as published": (
        SiglipVisionModel,
        SiglipVisionConfig(**VISION),
        SiglipImageProcessorPil(size=SQUARE),
        False,
        0,
    ),
    "siglip with a mean of its own": (
        SiglipModel,
        SiglipConfig(vision_config=VISION, text_config=TEXT),
        SiglipImageProcessorPil(size=SQUARE, **OWN),
        True,
        0,
    ),
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_sees_as_it_was_trained(family, tmp_path, name):
    kind, config, images, saved, extra = BASELINES[name]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "tower")
    if saved:
        images.save_pretrained(tmp_path / "tower")
    assemble(tmp_path / "tower", family / "llm", tmp_path / "out")

    chat = ChatModel.from_pretrained(tmp_path / "out", max_new_tokens=2)
    noise = torch.randint(0, 256, (60, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = [Image.fromarray(noise.numpy()), Image.new("RGB", (40, 100), "red")]
    expected = images(pictures, return_tensors="pt")["pixel_values"]
    pixels = chat.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, expected) and pixels.shape == (2, 3, 48, 48)

    own = AutoModel.from_pretrained(tmp_path / "tower").eval()
    own = getattr(own, "vision_model", own)
    with torch.no_grad():
        tokens = own(expected, output_hidden_states=True).hidden_states[2][:, extra:]
        seen = chat.model.get_image_features(pixels).pooler_output
    assert tokens.shape == (2, 9, 32)
    assert torch.allclose(tower_tokens(chat.model)(pixels), tokens, atol=1e-6)
    assert torch.allclose(torch.stack(seen), chat.model.model.multi_modal_projector(tokens), atol=1e-6)

    ids = chat.processor(images=pictures[:1], text="<image> red")["input_ids"][0]
    assert list(ids).count(chat.model.config.image_token_id) == 9
    assert isinstance(chat.chat([{"role": "user", "content": "what?"}], pictures[:1]), str)


def test_an_encoder_of_another_kind_is_refused(family, tmp_path):
    Dinov2Model(Dinov2Config(**SMALL, image_size=48, patch_size=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a dinov2; give an OpenVision 3 encoder, CLIP or SigLIP"):
        assemble(tmp_path, family / "llm", tmp_path / "out")


def test_an_image_processor_of_another_size_is_refused(family, tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="makes pictures of 64x64 pixels and the encoder takes 48x48; correct"):
        assemble(tmp_path, family / "llm", tmp_path / "out")


def test_tower_and_llm_are_taken_over_without_a_copy_and_the_connector_is_new(family):
    tower = load_tower(family / "autoencoder")
    llm, _ = load_llm(family / "llm")
    tokenizer = AutoTokenizer.from_pretrained(family / "mllm")
    torch.manual_seed(3)
    model = join(tower, llm, tokenizer, "llm")
    assert isinstance(model, LlavaForConditionalGeneration) and not model.training
    assert model.model.language_model is llm.base_model and model.lm_head is llm.lm_head
    assert model.model.vision_tower is tower.model
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
    connector = model.model.multi_modal_projector
    for part in (connector.linear_1, connector.linear_2):  # initializer_range is 0.02
        assert 0.015 < part.weight.std() < 0.025 and not part.bias.any()
    torch.manual_seed(3)
    again = join(tower, llm, tokenizer, "llm").model.multi_modal_projector
    assert torch.equal(again.linear_1.weight, connector.linear_1.weight)
