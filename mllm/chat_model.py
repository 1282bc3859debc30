"""A multimodal LLM that is loaded once and asked many times."""

from argparse import ArgumentParser
from collections.abc import Generator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer
from transformers.utils import ADAPTER_CONFIG_NAME

import encoder  # noqa: F401  registers the vision tower with the Auto classes
from encoder.commands import add_device_argument, usable_device
from encoder.images import load_image
from mllm.conversation import IMAGE, encode_conversation, end_of_answer
from mllm.sampling import token_choice

UNFINISHED = "\ufffd"  # what a tokenizer makes of a character's first bytes
# An LLM's own settings of sampling and beams would be in the way of token_choice; these are generate's defaults.
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
KINDS = ("llava", "llava_next")
Message = dict[str, str]
Picture = Image.Image | str | Path
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_device_arguments(parser: ArgumentParser) -> None:
    """--device and --dtype, where and in what a command runs its ChatModel."""
    add_device_argument(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation (default: float32)")


class _Ids(BaseStreamer):
    """Hands the ids of one answer to another thread: lists of ids, then None."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[list[int] | None] = SimpleQueue()
        self.prompt_came = False

    def put(self, value: Tensor) -> None:
        if self.prompt_came:
            self.queue.put(value.flatten().tolist())
        self.prompt_came = True

    def end(self) -> None:
        self.queue.put(None)


class _Stopped(StoppingCriteria):
    """Ends generation at the next token once the event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class ChatModel:
    """Answers questions about pictures, in the conversation template that the folder was trained with.

    Messages are {"role": "user" | "assistant" | "system", "content": str}. As many `<image>` in the user's contents as
    there are pictures are their places; else every `<image>` is text, as all other special tokens always are, and the
    pictures come first in the first user message. Works on the model's device and in its dtype, also after `model.to`.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration | LlavaNextForConditionalGeneration,
        processor: LlavaProcessor | LlavaNextProcessor,
        max_new_tokens: int = 128,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self.max_new_tokens = max_new_tokens
        # mllm.train names the template; a stock folder, or one that is assembled only, has its LLM's own.
        self.template: str = getattr(model.config, "conversation_template", "chat")
        # Answers end at eos, at the LLM's own end tokens, and at the one that ends an answer in the template.
        own = model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        self.end_ids = sorted((ends | {end_of_answer(self.tokenizer, self.template)}) - {None})
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.tokenizer.eos_token_id if pad is None else pad
        self.context: int = model.config.get_text_config().max_position_embeddings  # of prompt and answer together

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        max_new_tokens: int = 128,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "ChatModel":
        """Reads a folder of mllm.assemble or mllm.train.

        Raises:
            ValueError: there is no such folder or device, or the folder's model is of another kind or adapters alone.
        """
        if (Path(folder) / ADAPTER_CONFIG_NAME).is_file():
            raise ValueError(f"{folder} holds adapters; python -m mllm.merge makes a whole model of them.")
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"There is no multimodal LLM at {folder}; make one with python -m mllm.assemble.")
        device = usable_device(device)
        if (kind := AutoConfig.from_pretrained(folder).model_type) not in KINDS:
            raise ValueError(f"The model at {folder} is a {kind}; ChatModel takes {' and '.join(KINDS)}.")
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device)
        return cls(model, AutoProcessor.from_pretrained(folder), max_new_tokens)

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[Picture] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """The whole answer.

        Args:
            max_new_tokens: the answer is cut there, or where the LLM's context ends; None: the model's own.
            temperature, top_p, seed: see `mllm.sampling.token_choice`; None: as the LLM's own generation config says.

        Raises:
            ValueError: there is no question, an option is out of its range, or the LLM's context is too short.
        """
        settings = self._settings(max_new_tokens, temperature, top_p, seed)
        return self._answers([(messages, images)], settings)[0]

    def batch(self, requests: Sequence[tuple[Sequence[Message], Sequence[Picture]]]) -> list[str]:
        """Likeliest answers to several conversations at once, padded on the left; they are those of one by one."""
        return self._answers(requests, self._settings(temperature=0.0))

    def stream(
        self,
        messages: Sequence[Message],
        images: Sequence[Picture] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Generator[str, None, str]:
        """Yields the answer in pieces, which joined are what `chat` returns with the same options and seed.

        The generator's own value (of `yield from`) is why the answer ends: "stop", or "length" where it was cut.
        Closing the iterator stops the computation at the next token. An error of the computation, which runs in a
        thread of its own, is raised where the pieces are taken; a request that cannot be read is refused at once.
        """
        settings = self._settings(max_new_tokens, temperature, top_p, seed)
        return self._pieces(self._inputs([(messages, images)]), settings)

    def _pieces(self, inputs: dict, settings: dict) -> Generator[str, None, str]:
        streamer, stop, failed = _Ids(), Event(), []

        def work() -> None:
            try:
                criteria = StoppingCriteriaList([_Stopped(stop)])
                self._generate(inputs, {**settings, "streamer": streamer, "stopping_criteria": criteria})
            except BaseException as error:  # whatever it is, a caller who waits for the next piece must hear of it
                failed.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        ids, shown, last = [], "", None
        hidden = set(self.tokenizer.all_special_ids)
        try:
            for new in iter(streamer.queue.get, None):
                last = new[-1]
                ids += [token for token in new if token not in hidden]
                text = self._text(ids)
                # A sentencepiece byte is read anew with each byte that follows it.
                byte = bool(ids) and str(self.tokenizer.convert_ids_to_tokens(ids[-1])).startswith("<0x")
                open_end = byte or text.endswith(UNFINISHED)
                if len(text) > len(shown) and not open_end:
                    yield text[len(shown) :]
                    shown = text
            if failed:
                raise failed[0]
            if rest := self._text(ids)[len(shown) :]:
                yield rest
            return "stop" if last in self.end_ids else "length"
        finally:
            stop.set()
            thread.join()

    def _settings(
        self,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> dict:
        """Keyword arguments of `generate`."""
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; give 1 or more.")
        return {
            **GREEDY,
            "max_new_tokens": self.max_new_tokens if max_new_tokens is None else max_new_tokens,
            "logits_processor": token_choice(self.model.generation_config, temperature, top_p, seed),
            "eos_token_id": self.end_ids,
            "pad_token_id": self.pad_id,
        }

    def _answers(self, requests: Sequence[tuple[Sequence[Message], Sequence[Picture]]], settings: dict) -> list[str]:
        inputs = self._inputs(requests)
        ids = self._generate(inputs, settings)
        return [self._text(row) for row in ids[:, inputs["input_ids"].shape[1] :]]

    @torch.inference_mode()
    def _generate(self, inputs: dict, settings: dict) -> Tensor:
        room = self.context - inputs["input_ids"].shape[1]
        return self.model.generate(**inputs, **{**settings, "max_new_tokens": min(settings["max_new_tokens"], room)})

    def _text(self, ids: Tensor | list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _inputs(self, requests: Sequence[tuple[Sequence[Message], Sequence[Picture]]]) -> dict:
        loaded = [
            [image if isinstance(image, Image.Image) else load_image(image) for image in images]
            for _, images in requests
        ]
        for messages, _ in requests:
            asked = messages and messages[-1]["role"] == "user" and messages[-1]["content"].replace(IMAGE, "").strip()
            if not asked:
                raise ValueError("The question is empty; end the messages with a user message that asks something.")
        pictures = [picture for group in loaded for picture in group]
        pixels = self.processor.image_processor(pictures, return_tensors="pt") if pictures else {}
        numbers = iter(
            len(self.processor.replace_image_token(pixels, index)) // len(self.processor.image_token)
            for index in range(len(pictures))
        )
        rows = []
        for (messages, _), group in zip(requests, loaded, strict=True):
            turns = [{"from": message["role"], "value": message["content"]} for message in messages]
            row = {"id": "chat", "conversations": turns, **({"image": [""] * len(group)} if group else {})}
            tokens = [next(numbers) for _ in group]
            encoded = encode_conversation(row, self.tokenizer, self.template, tokens, add_generation_prompt=True)
            rows.append(encoded["input_ids"])
        longest = max(map(len, rows))
        if longest >= self.context:
            raise ValueError(
                f"The conversation has {longest} tokens with its pictures and the LLM's context is {self.context}; "
                "shorten it, or begin a new one."
            )
        input_ids = torch.full((len(rows), longest), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, longest - len(row) :] = torch.tensor(row)
            attention_mask[index, longest - len(row) :] = 1
        device = self.model.device
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
        if pictures:
            inputs["pixel_values"] = pixels["pixel_values"].to(device, self.model.dtype)
        if "image_sizes" in pixels:  # of AnyRes
            inputs["image_sizes"] = pixels["image_sizes"].to(device)
        return inputs
