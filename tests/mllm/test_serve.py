"""The server as OpenAI's own client sees it."""

import base64
import http.client
import io
import threading

import openai
import pytest
import uvicorn

from mllm import ChatModel
from mllm.serve import MAX_BODY, build_server


def data_url(picture, kind="png"):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text):
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def model(family):
    return ChatModel.from_pretrained(family / "mllm", max_new_tokens=12)


@pytest.fixture(scope="module")
def client(model):
    server = uvicorn.Server(uvicorn.Config(build_server(model, "tiny"), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    server.should_exit = True
    thread.join(10)


def ask(client, content, **options):
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}], **options)


def test_whole_and_streamed_answers_are_chatmodels(client, model, pictures):
    content = [picture_part(data_url(pictures[0])), text_part("what color is the circle?")]
    expected = model.chat([{"role": "user", "content": "<image>\nwhat color is the circle?"}], pictures[:1])
    assert ask(client, content).choices[0].message.content == expected != ""
    chunks = list(ask(client, content, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == expected
    assert chunks[-1].choices[0].finish_reason == "length"  # the model of random weights talks on to its limit
    assert [entry.id for entry in client.models.list()] == ["tiny"]


def test_an_answer_that_ends_by_itself_says_so(client, model, monkeypatch):
    monkeypatch.setattr(model, "end_ids", list(range(len(model.tokenizer))))  # whatever comes first
    assert ask(client, "what?").choices[0].finish_reason == "stop"
    assert [chunk.choices[0].finish_reason for chunk in ask(client, "what?", stream=True)][-1] == "stop"
    monkeypatch.undo()
    assert ask(client, "what?", max_tokens=1).choices[0].finish_reason == "length"


def test_several_turns_and_pictures_keep_their_places(client, model, pictures):
    turns = [
        {"role": "system", "content": "a small red circle"},
        {"role": "user", "content": [text_part("is "), picture_part(data_url(pictures[0])), text_part("red?")]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [picture_part(data_url(pictures[1])), text_part("where is the cross?")]},
    ]
    plain = [
        turns[0],
        {"role": "user", "content": "is <image>\nred?"},
        turns[2],
        {"role": "user", "content": "<image>\nwhere is the cross?"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=turns).choices[0].message.content
    assert answer == model.chat(plain, pictures[:2])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([picture_part("https://example.org/a.png"), text_part("what?")], "no data URL.*nothing is fetched"),
        ([picture_part("file:///etc/passwd"), text_part("what?")], "Picture 1 is no data URL"),
        ([picture_part("data:image/png;base64,@@"), text_part("what?")], "Picture 1 is not base64"),
        ([picture_part("data:image/png;base64,aGVsbG8="), text_part("what?")], "picture 1 .* cannot be read"),
        ("", "question is empty"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_get_a_sentence(client, content, sentence, stream):
    with pytest.raises(openai.BadRequestError, match=sentence):
        ask(client, content, stream=stream)


def test_what_the_server_does_not_do_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        ask(client, "what?", logprobs=True)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, "what?", temperature=9)
    with pytest.raises(openai.BadRequestError, match="seed"):
        ask(client, "what?", seed=2**63)
    assert ask(client, "what?", seed=-(2**63), temperature=1, max_tokens=1).choices[0].finish_reason
    with pytest.raises(openai.NotFoundError, match="no model 'other' here.*'tiny'"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "what?"}])
    with pytest.raises(openai.APIStatusError, match="Content-Length"):
        ask(client, "a" * MAX_BODY)


def test_a_body_whose_length_is_not_told_is_not_read(client):
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    for headers in ({}, {"Content-Length": "4"}):  # chunks go before a length
        connection.request(
            "POST", "/v1/chat/completions", [b"body"], {"Transfer-Encoding": "chunked", **headers}, encode_chunked=True
        )
        answer = connection.getresponse()
        assert answer.status == 413 and b"needs a Content-Length" in answer.read()
        connection.close()
