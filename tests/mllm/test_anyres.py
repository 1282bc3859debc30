"""AnyRes by the library's LlavaNext classes: assembled, saved and read again, asked; mllm.train and mllm.inspect_data
refuse it."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)

from mllm import ChatModel
from mllm.assemble import main as assemble
from mllm.inspect_data import main as inspect_data
from mllm.train import main as train

QUESTION = [{"role": "user", "content": "what color is the circle?"}]
CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module", params=["openvision3", "clip"])
def folder(request, family, tmp_path_factory):
    """A tower of 32 px and 2 x 2 patches, with the family's LLM."""
    root = tmp_path_factory.mktemp(request.param)
    encoder = family / "autoencoder"
    if request.param == "clip":
        encoder = root / "clip"
        torch.manual_seed(0)
        CLIPVisionModel(CLIPVisionConfig(**CLIP, image_size=32, patch_size=16)).save_pretrained(encoder)
    assemble(["--encoder", str(encoder), "--llm", str(family / "llm"), "--out", str(root / "out"), "--anyres"])
    return root / "out"


@pytest.fixture(scope="module")
def views():
    noise = torch.randint(0, 256, (90, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    return [Image.fromarray(noise[:height, :width].copy()) for height, width in ((64, 64), (30, 90), (80, 20), (9, 13))]


def test_a_picture_has_the_tokens_of_its_tiles_and_of_their_lines(folder, views):
    chat = ChatModel.from_pretrained(folder)
    assert isinstance(chat.model, LlavaNextForConditionalGeneration) and isinstance(chat.processor, LlavaNextProcessor)
    # The whole: 4. In 2 x 2 tiles a square has 4 lines of 4 and a line's end: 20. 30:90 is 3 tiles: 2 lines of 6 + 1.
    ids = [chat._inputs([(QUESTION, [view])])["input_ids"][0].tolist() for view in views[:2]]
    assert [row.count(chat.model.config.image_token_id) for row in ids] == [4 + 20, 4 + 14]
    for view in views:
        inputs = chat._inputs([(QUESTION, [view])])
        (features,) = chat.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        assert (inputs["input_ids"] == chat.model.config.image_token_id).sum() == len(features)
        stock = chat.processor(images=[view], text="<image> red", return_tensors="pt")
        assert (stock["input_ids"] == chat.model.config.image_token_id).sum() == len(features)
        assert torch.equal(stock["pixel_values"], inputs["pixel_values"])


def test_pictures_of_unlike_size_are_answered_together_as_one_by_one(folder, views):
    chat = ChatModel.from_pretrained(folder, max_new_tokens=6)
    both = [{"role": "user", "content": "<image> or <image>?"}]
    requests = [(QUESTION, views[:1]), ([{"role": "user", "content": "is there a star?"}], []), (both, views[1:3])]
    assert chat.batch(requests) == [chat.chat(*request) for request in requests]


def test_every_part_is_saved_and_read_again(folder, views):
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    newline = model.model.image_newline
    assert newline.device.type == "cpu" and 0.5 < newline.std() * newline.numel() ** 0.5 < 1.5
    model.save_pretrained(folder.parent / "again")
    AutoProcessor.from_pretrained(folder).save_pretrained(folder.parent / "again")
    first, second = (ChatModel.from_pretrained(path) for path in (folder, folder.parent / "again"))
    inputs = first._inputs([(QUESTION, views[:2])])
    with torch.no_grad():
        logits = [part.model(**part._inputs([(QUESTION, views[:2])])).logits for part in (first, second)]
        blank = first.model(**{**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}).logits
    assert torch.equal(*logits) and not torch.allclose(logits[0], blank)


def test_training_and_its_inspection_refuse_it(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text("{}")
    paths = [f"init_from={folder}", f"output_dir={tmp_path / 'out'}", "data=rows.json", "images=."]
    with pytest.raises(ValueError, match="a llava_next; give a folder assembled without --anyres"):
        train([str(tmp_path / "recipe.yaml"), *paths])
    with pytest.raises(ValueError, match="holds a llava_next; give a folder assembled without --anyres"):
        inspect_data([str(tmp_path / "rows.json"), f"--images={tmp_path}", f"--model={folder}"])
