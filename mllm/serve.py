"""Answers OpenAI's chat requests with a multimodal LLM: python -m mllm.serve --model runs/mllm --port 8000

    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    client.chat.completions.create(model="mllm", messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
        {"type": "text", "text": "what color is the circle?"}]}])

GET /v1/models and POST /v1/chat/completions, streamed or whole. Pictures come as data URLs: nothing is fetched and no
file is read. Prompts are built by ChatModel, as in training; one request is computed at a time, the others wait.
"""

import argparse
import base64
import binascii
import io
import json
import time
import uuid
from asyncio import Lock
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import iterate_in_threadpool, run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from encoder.images import load_image
from mllm.chat_model import DTYPES, ChatModel, add_device_arguments
from mllm.conversation import IMAGE
from training.cli import run_cli

MAX_BODY = 50_000_000  # bytes of a request; a picture as base64 is 4/3 of its file
MAX_IMAGES = 16


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageUrl(_Strict):
    """A picture in the request."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # every picture is seen at the encoder's size


class Part(_Strict):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class RequestMessage(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class ChatRequest(_Strict):
    """OpenAI's request, as far as this server follows it; any other key is refused."""

    model: str
    messages: list[RequestMessage]
    stream: bool = False
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: Literal[1] = 1
    user: str | None = None


def read_messages(messages: list[RequestMessage]) -> tuple[list[dict[str, str]], list[Image.Image]]:
    """ChatModel's messages and pictures, in order.

    Raises:
        ValueError: a picture outside a user's message, that is no data URL or cannot be read, or too many of them.
    """
    turns, pictures = [], []
    for message in messages:
        parts = [Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        texts = []
        for part in parts:
            if part.type == "text":
                texts.append(part.text or "")
                continue
            if message.role != "user":
                raise ValueError("Pictures belong in user messages; move this one there.")
            if len(pictures) == MAX_IMAGES:
                raise ValueError(f"A request holds at most {MAX_IMAGES} pictures.")
            pictures.append(read_picture(part.image_url.url if part.image_url else "", len(pictures) + 1))
            texts.append(f"{IMAGE}\n")
        role = "system" if message.role == "developer" else message.role
        turns.append({"role": role, "content": "".join(texts)})
    return turns, pictures


def read_picture(url: str, number: int) -> Image.Image:
    """The picture of a data URL, as RGB.

    Raises:
        ValueError: another kind of URL, or bytes that are no picture.
    """
    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError(f"Picture {number} is no data URL; send data:image/png;base64,... (nothing is fetched).")
    try:
        content = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"Picture {number} is not base64 ({error}).") from error
    return load_image(io.BytesIO(content), name=f"picture {number} of the request")


def refusal(sentence: str, status: int = 400) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    return JSONResponse({"error": {"message": sentence, "type": "invalid_request_error"}}, status)


def whole(pieces: Generator[str, None, str]) -> tuple[str, str]:
    """An answer of ChatModel.stream in one piece, and why it ends."""
    parts = []
    while True:
        try:
            parts.append(next(pieces))
        except StopIteration as end:
            return "".join(parts).strip(), end.value


def chunks(pieces: Generator[str, None, str], head: dict) -> Iterator[str]:
    """An answer of ChatModel.stream as server-sent events in OpenAI's form."""

    def event(delta: dict, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": ""})
    while True:
        try:
            yield event({"content": next(pieces)})
        except StopIteration as end:
            yield event({}, end.value)
            break
    yield "data: [DONE]\n\n"


class BodyCap:
    """ASGI middleware that refuses a request before its body is read, if that is too long or of unknown length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.app
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = Headers(scope=scope)
            length = headers.get("content-length", "")
            # With both headers the server would read chunks without end.
            if "transfer-encoding" in headers or not length.isdigit() or int(length) > MAX_BODY:
                answer = refusal(f"A request needs a Content-Length of at most {MAX_BODY:,} bytes.", 413)
        await answer(scope, receive, send)


def build_server(model: ChatModel, name: str) -> FastAPI:
    """The application that answers as the model `name`."""
    app, preparing, turn = FastAPI(title="OpenVision 3"), Lock(), Lock()
    app.add_middleware(BodyCap)

    @app.exception_handler(RequestValidationError)
    async def unread(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refusal(f"{'.'.join(map(str, first['loc'][1:])) or 'the body'}: {first['msg']}.")

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "openvision3"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: ChatRequest) -> Response:
        if request.model != name:
            return refusal(f"There is no model {request.model!r} here; the one there is is {name!r}.", 404)
        options = {"max_new_tokens": request.max_completion_tokens or request.max_tokens,
                   "temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}  # fmt: skip
        options = {key: value for key, value in options.items() if value is not None}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

        def prepare() -> Generator[str, None, str]:
            return model.stream(*read_messages(request.messages), **options)

        try:
            async with preparing:  # pictures fill memory until they have the encoder's size
                pieces = await run_in_threadpool(prepare)
            if request.stream:
                return StreamingResponse(events(pieces, head), media_type="text/event-stream")
            async with turn:
                text, reason = await run_in_threadpool(whole, pieces)
        except ValueError as error:
            return refusal(str(error))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})

    async def events(pieces: Generator[str, None, str], head: dict) -> AsyncIterator[str]:
        """Whoever goes away before the end stops the computation."""
        async with turn:
            try:
                async for line in iterate_in_threadpool(chunks(pieces, head)):
                    yield line
            finally:
                pieces.close()

    return app


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mllm.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="multimodal LLM folder")
    parser.add_argument("--name", default=None, help="what requests call the model (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="where a request names no limit (default: 512)")
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    model = ChatModel.from_pretrained(args.model, args.max_new_tokens, args.device, DTYPES[args.dtype])
    uvicorn.run(build_server(model, args.name or args.model.resolve().name), host=args.host, port=args.port)


if __name__ == "__main__":
    run_cli(main)
