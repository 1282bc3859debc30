"""The page's functions under what visitors really send: emptied fields, long texts, markup, pictures that are none."""

import gradio as gr
import pytest
from PIL import Image

from demo.app import ENLARGED, MAX_CHARACTERS, NO_ANSWER, Family, build_app, plain_text


@pytest.fixture(scope="module")
def page(checkpoints, tmp_path_factory):
    """The loaded family, and the page's functions by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        family = Family.load(checkpoints)
    return family, {function.api_name: function.fn for function in build_app(family).fns.values()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "prompt is empty"),
        (" \n", "prompt is empty"),
        ("a" * (MAX_CHARACTERS + 1), f"at most {MAX_CHARACTERS}"),
        ("a <image>", "holds (<|&lt;)image"),
    ],
)
def test_texts_the_models_cannot_read_are_refused_in_a_sentence(page, text, said):
    with pytest.raises(ValueError, match=said):
        plain_text(text, "prompt", "say what to draw")
    _, functions = page
    with pytest.raises(gr.Error, match=said):
        functions["redraw"](text, 1, 0, 4, 2.0)
    with pytest.raises(gr.Error, match=said.replace("prompt", "question")):
        list(functions["ask"](text, None, []))


def test_a_question_that_fills_the_llms_context_is_refused_in_a_sentence(page):
    with pytest.raises(gr.Error, match="has [0-9]+ tokens .* context is 512; shorten it"):
        list(page[1]["ask"]("語" * MAX_CHARACTERS, None, []))


def test_an_emptied_seed_is_refused(page):
    with pytest.raises(gr.Error, match="seed is empty"):
        page[1]["redraw"]("a red circle", 1, None, 4, 2.0)


def test_a_question_is_shown_at_once_and_always_gets_an_answer(page, monkeypatch, picture):
    family, functions = page
    monkeypatch.setattr(family.chat, "stream", lambda messages, images: iter(["re", "d"]))
    shown = [[turn["content"] for turn in history] for history, _ in functions["ask"](" what? ", picture, None)]
    assert shown == [["what?", "..."], ["what?", "re"], ["what?", "red"]]
    monkeypatch.setattr(family.chat, "stream", lambda messages, images: iter([]))
    history, question = list(functions["ask"]("what?", picture, []))[-1]
    assert history[-1]["content"] == NO_ANSWER and question == ""


def test_the_answer_is_computed_and_not_looked_up(page, monkeypatch, picture):
    family, functions = page
    asked = []

    def stream(messages, images):
        asked.append((messages, images))
        yield str(len(asked))

    monkeypatch.setattr(family.chat, "stream", stream)
    for number in ("1", "2"):
        assert list(functions["ask"]("what?", picture, []))[-1][0][-1]["content"] == number
    assert asked[0] == asked[1] == ([{"role": "user", "content": "what?"}], [picture])


@pytest.mark.parametrize("name", ["show", "reconstruct"])
def test_files_that_are_no_pictures_are_refused_by_name(page, tmp_path, name):
    broken, huge = tmp_path / "broken.png", tmp_path / "huge.png"
    broken.write_bytes(b"this is no picture")
    Image.new("1", (10_000, 6_000)).save(huge)
    with pytest.raises(gr.Error, match="broken.png cannot be read as a picture"):
        page[1][name](str(broken))
    with pytest.raises(gr.Error, match="huge.png has 10000 x 6000 pixels"):
        page[1][name](str(huge))


def test_drawings_and_reconstructions_are_shown_enlarged(page, picture, tmp_path):
    family, functions = page
    side = family.autoencoder.image_size * ENLARGED
    assert [drawing.size for drawing in functions["redraw"]("a red circle", 2, 0, 2, 2.0)] == [(side, side)] * 2
    picture.save(tmp_path / "noise.png")
    before, after, text = functions["reconstruct"](str(tmp_path / "noise.png"))
    assert before.size == after.size == (side, side) and "dB" in text


def test_a_picture_from_another_world_is_announced(page, picture, tmp_path):
    family, functions = page
    picture.save(tmp_path / "noise.png")
    shown, note = functions["show"](str(tmp_path / "noise.png"))
    assert shown.size == picture.size
    distance = family.outside.distance(family.autoencoder.pool(family.tokens(picture))).item()
    assert bool(note) == (distance > family.outside.threshold)
    family.outside.threshold, kept = -1.0, family.outside.threshold
    assert "unlike" in functions["show"](str(tmp_path / "noise.png"))[1]
    family.outside.threshold = kept
