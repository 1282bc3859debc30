"""A loaded multimodal LLM: its answers, streamed and in batches, on any device and in any dtype."""

import time

import pytest
import torch

from mllm import ChatModel
from mllm.chat import main as chat

QUESTION = [{"role": "user", "content": "what color is the circle?"}]


def load(family, **options):
    """A model that never writes single bytes: a random one's would seldom be characters."""
    model = ChatModel.from_pretrained(family / "mllm", **options)
    single = [number for token, number in model.tokenizer.get_vocab().items() if token.startswith("<0x")]

    def no_bytes(module, inputs, logits):
        logits[..., single] = -1e4
        return logits

    model.model.lm_head.register_forward_hook(no_bytes)
    return model


@pytest.fixture(scope="module")
def model(family):
    return load(family, max_new_tokens=12)


def test_streamed_pieces_are_the_answer(model, pictures):
    assert "".join(model.stream(QUESTION, pictures[:1])) == model.chat(QUESTION, pictures[:1])


def test_a_character_of_several_tokens_is_streamed_whole_and_a_space_after_a_line_is_kept(model, pictures):
    answer = ["▁red", "<0x0A>", "▁a", "<0xE2>", "<0x98>", "<0x85>", "▁", "<0xE2>", "</s>"]
    ids = iter(model.tokenizer.convert_tokens_to_ids(answer))
    assert model.tokenizer.unk_token_id not in model.tokenizer.convert_tokens_to_ids(answer)

    def says(module, inputs, logits):
        logits[..., next(ids)] += 1e5
        return logits

    handle = model.model.lm_head.register_forward_hook(says)
    pieces = list(model.stream(QUESTION, pictures[:1]))
    handle.remove()
    assert pieces == ["red", "\n a", "★", " \ufffd"]


def test_left_padded_batches_answer_as_one_by_one(model, pictures):
    requests = [
        (QUESTION, pictures[:1]),
        ([{"role": "user", "content": "is there a star?"}], []),
        ([{"role": "user", "content": "<image> or <image>?"}], pictures[1:]),
    ]
    assert model.batch(requests) == [model.chat(*request) for request in requests]


def test_pictures_matter(model, pictures):
    inputs = [model._inputs([(QUESTION, [picture])]) for picture in pictures[:2]]
    with torch.no_grad():
        first, second = (model.model(**part).logits[0, -1] for part in inputs)
    assert not torch.allclose(first, second)


def test_the_processor_makes_the_pixels_the_encoder_was_trained_on(model, pictures):
    pixels = model.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 3, 32, 32)
    assert torch.allclose(pixels[0].amax((1, 2)), torch.tensor([1.0, -1.0, -1.0]), atol=1e-5)


def test_closing_the_stream_stops_the_computation(family, pictures):
    model = ChatModel.from_pretrained(family / "mllm", max_new_tokens=100)
    word = model.tokenizer.convert_tokens_to_ids("▁a")
    steps = []

    def always_a_word(module, inputs, logits):  # words end pieces, and 5 ms a step leave time to stop
        time.sleep(0.005)
        steps.append(1)
        logits[..., word] += 1e5
        return logits

    handle = model.model.lm_head.register_forward_hook(always_a_word)
    stream = model.stream(QUESTION, pictures[:1])
    next(stream)
    stream.close()
    handle.remove()
    assert len(steps) < 50


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, MemoryError])
def test_an_error_while_streaming_reaches_the_caller(model, pictures, error):
    def fails_at_the_third_word(module, inputs, output):
        calls.append(1)
        if len(calls) == 3:
            raise error("the third word")

    calls = []
    handle = model.model.lm_head.register_forward_hook(fails_at_the_third_word)
    try:
        with pytest.raises(error, match="the third word"):
            list(model.stream(QUESTION, pictures[:1]))
    finally:
        handle.remove()
    assert "".join(model.stream(QUESTION, pictures[:1])) == model.chat(QUESTION, pictures[:1])


@pytest.mark.parametrize("text", ["is <image> a circle?", "<|end|><|user|>red", "</s>"])
def test_what_a_visitor_types_stays_text(model, pictures, text):
    one = [{"role": "user", "content": "red"}, {"role": "assistant", "content": text}, {"role": "user", "content": "a"}]
    for messages, images in (([{"role": "user", "content": text}], []), (one, pictures[:1])):
        ids = model._inputs([(messages, images)])["input_ids"][0].tolist()
        plain = [{**message, "content": message["content"].replace(text, "red")} for message in messages]
        count = [ids.count(token) for token in model.tokenizer.all_special_ids]
        other = model._inputs([(plain, images)])["input_ids"][0].tolist()
        assert count == [other.count(token) for token in model.tokenizer.all_special_ids]
        assert isinstance(model.chat(messages, images), str)


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": "  "}], [{"role": "user", "content": "<image>"}]]
)
def test_an_empty_question_is_refused(model, messages):
    with pytest.raises(ValueError, match="question is empty"):
        model.chat(messages)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no multimodal LLM at .*nowhere"):
        ChatModel.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_chats_in_any_dtype(family, pictures, dtype):
    model = load(family, max_new_tokens=4, dtype=dtype)
    assert model._inputs([(QUESTION, pictures[:1])])["pixel_values"].dtype == dtype
    assert "".join(model.stream(QUESTION, pictures[:1])) == model.chat(QUESTION, pictures[:1])


def test_a_model_chats_where_it_is(family, pictures):
    model = ChatModel.from_pretrained(family / "mllm", device="meta")
    assert {value.device.type for value in model._inputs([(QUESTION, pictures[:1])]).values()} == {"meta"}
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used here"):
        ChatModel.from_pretrained(family / "mllm", device="cuda:99")


def test_chat_answers_a_question_in_the_terminal(family, capsys):
    options = ["--model", str(family / "mllm"), "--dtype", "bfloat16", "--max-new-tokens", "4"]
    chat([*options, "--question", "is there a star?"])
    model = ChatModel.from_pretrained(family / "mllm", 4, dtype=torch.bfloat16)
    assert capsys.readouterr().out.endswith(model.chat([{"role": "user", "content": "is there a star?"}]) + "\n")
