"""A loaded multimodal LLM: its answers, streamed and in batches, on any device and in any dtype."""

from threading import Event, active_count

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


def test_drawn_answers_follow_their_seed(model, pictures):
    ask = [[{"role": "user", "content": "is there a star?"}], pictures[:1]]
    first = model.chat(*ask, temperature=2.0, seed=1)
    assert first == model.chat(*ask, temperature=2.0, seed=1) == "".join(model.stream(*ask, temperature=2.0, seed=1))
    assert first != model.chat(*ask, temperature=2.0, seed=2)
    likeliest = model.batch([ask])[0]
    assert likeliest == model.chat(*ask) == model.chat(*ask, temperature=0.0) == model.chat(*ask, temperature=1e-4)
    assert likeliest == model.chat(*ask, temperature=9.0, top_p=1e-6)


def test_an_llm_that_samples_by_its_own_config_is_sampled_from_in_chat_and_not_in_batches(family, pictures):
    model = load(family, max_new_tokens=12)
    likeliest = model.chat(QUESTION, pictures[:1])
    model.model.generation_config.update(do_sample=True, temperature=3.0)
    assert model.chat(QUESTION, pictures[:1], seed=1) == model.chat(QUESTION, pictures[:1], temperature=3.0, seed=1)
    assert len({model.chat(QUESTION, pictures[:1], seed=seed) for seed in range(3)}) == 3
    assert model.batch([(QUESTION, pictures[:1])]) == [likeliest] == [model.chat(QUESTION, pictures[:1], temperature=0)]


def test_an_answer_is_cut_at_max_new_tokens(model, pictures):
    ids = []
    handle = model.model.lm_head.register_forward_hook(lambda module, inputs, logits: ids.append(1))
    model.chat(QUESTION, pictures[:1], max_new_tokens=3)
    assert len(ids) <= 3
    ids.clear()
    "".join(model.stream(QUESTION, pictures[:1], max_new_tokens=1))
    handle.remove()
    assert len(ids) == 1
    with pytest.raises(ValueError, match="max_new_tokens is 0; give 1 or more"):
        model.chat(QUESTION, max_new_tokens=0)


def test_prompt_and_answer_stay_within_the_llms_context(model, pictures, monkeypatch):
    ids = []
    length = model._inputs([(QUESTION, pictures[:1])])["input_ids"].shape[1]
    monkeypatch.setattr(model, "context", length + 1)
    handle = model.model.lm_head.register_forward_hook(lambda module, inputs, logits: ids.append(1))
    assert model.chat(QUESTION, pictures[:1]) == "".join(model.stream(QUESTION, pictures[:1]))
    handle.remove()
    assert len(ids) == 2
    monkeypatch.setattr(model, "context", length)
    for ask in (model.chat, model.stream):
        with pytest.raises(ValueError, match=f"has {length} tokens .* context is {length}; shorten it"):
            ask(QUESTION, pictures[:1])


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


@pytest.mark.timeout(60)
def test_closing_the_stream_ends_the_computation_with_the_step_it_is_in(family, pictures, monkeypatch):
    model = ChatModel.from_pretrained(family / "mllm", max_new_tokens=100)
    word = model.tokenizer.convert_tokens_to_ids("▁a")
    steps, closing = [], Event()
    monkeypatch.setattr("mllm.chat_model.Event", lambda: closing)

    def a_third_step_that_lasts_until_the_stream_is_closed(module, inputs, logits):
        steps.append(1)
        if len(steps) == 3:
            assert closing.wait(30)
        logits[..., word] += 1e5
        return logits

    model.model.lm_head.register_forward_hook(a_third_step_that_lasts_until_the_stream_is_closed)
    threads = active_count()
    stream = model.stream(QUESTION, pictures[:1])
    assert next(stream) == "a" and active_count() == threads + 1
    stream.close()
    assert len(steps) <= 3 and active_count() == threads


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [RuntimeError, KeyError, MemoryError, SystemExit])
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


def test_a_model_of_another_kind_is_named(family):
    with pytest.raises(ValueError, match="llm is a llama; ChatModel takes llava and llava_next"):
        ChatModel.from_pretrained(family / "llm")


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
    question = [{"role": "user", "content": "is there a star?"}]
    assert capsys.readouterr().out.endswith(model.chat(question) + "\n")
    chat([*options, "--question", question[0]["content"], "--temperature", "2", "--top-p", "0.9", "--seed", "5"])
    assert capsys.readouterr().out.endswith(model.chat(question, temperature=2.0, top_p=0.9, seed=5) + "\n")


def test_chat_in_the_terminal_goes_on_until_the_input_ends(family, pictures, tmp_path, monkeypatch, capsys):
    pictures[0].save(tmp_path / "a.png")
    lines = iter(["is there a star?", "and now?", f"/image {tmp_path / 'a.png'}", "what color?"])

    def read(prompt):
        if (line := next(lines, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    chat(["--model", str(family / "mllm"), "--max-new-tokens", "4"])
    model = ChatModel.from_pretrained(family / "mllm", 4)
    messages = [{"role": "user", "content": "is there a star?"}]
    first = model.chat(messages)
    second = model.chat([*messages, {"role": "assistant", "content": first}, {"role": "user", "content": "and now?"}])
    third = model.chat([{"role": "user", "content": "what color?"}], pictures[:1])
    assert capsys.readouterr().out == "".join(f"model: {answer}\n" for answer in (first, second, third))
