"""Turns -> prompt text with its trained stretches -> tokens. What people typed never becomes a special token.

A text of a turn holds PLACE where a picture is, and its special tokens, which are only words here, stand between OPEN
and CLOSE: `protected` makes it so. BEGIN is for render_chat. All are Unicode noncharacters, which no text may contain.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

PLACE, OPEN, CLOSE, BEGIN = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
Turns = Sequence[tuple[str, str]]  # role ("user", "assistant" or "system") and text
Span = tuple[int, int]  # first character that is trained on, and the one after the last


class ConversationError(ValueError):
    """A row cannot be trained on; the message names its id and says why, `kind` in few words, to be counted by."""

    def __init__(self, message: str, kind: str = "chat template") -> None:
        super().__init__(message)
        self.kind = kind


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text and id of every special token but the unknown one; read once a tokenizer and number of tokens."""
    return _special_tokens(tokenizer, len(tokenizer))[0]


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[dict[str, int], re.Pattern | None]:
    """The special tokens and what finds one of them, the longest first: 6 ms where there are 1,000."""
    added = tokenizer.added_tokens_decoder.items()
    tokens = {token.content: number for number, token in added if token.special and number != tokenizer.unk_token_id}
    names = sorted((re.escape(name) for name in tokens if len(name) > 1), key=len, reverse=True)
    return tokens, re.compile("|".join(names)) if names else None


def unmarked(text: str) -> str:
    """The text without the noncharacters, which would be read as marks."""
    return re.sub(f"[{PLACE}{OPEN}{CLOSE}{BEGIN}]", "", text)


def protected(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with every special token in it between OPEN and CLOSE, so that `tokenize` reads it as words."""
    pattern = _special_tokens(tokenizer, len(tokenizer))[1]
    return text if pattern is None else pattern.sub(rf"{OPEN}\g<0>{CLOSE}", text)


def render_vicuna(turns: Turns, tokenizer: PreTrainedTokenizerBase, generate: bool) -> tuple[str, list[Span]]:
    """LLaVA-1.5's "v1": the prompt and its trained stretches, the answers with their end token."""
    text = (turns[0][1] if turns[0][0] == "system" else VICUNA_SYSTEM) + " "
    spans: list[Span] = []
    for role, words in turns:
        if role == "user":
            text += f"USER: {words} ASSISTANT:"
        elif role == "assistant":
            answer = f" {words}{tokenizer.eos_token}"
            spans.append((len(text), len(text) + len(answer)))
            text += answer
    return text, spans


def render_plain(turns: Turns, tokenizer: PreTrainedTokenizerBase, generate: bool) -> tuple[str, list[Span]]:
    """LLaVA's first stage: the pictures, and the first answer with a line's end, which is trained on."""
    pictures = PLACE * sum(words.count(PLACE) for role, words in turns if role == "user")
    if generate:
        return pictures, []
    text = f"{pictures}{next(words for role, words in turns if role == 'assistant')}\n"
    return text, [(len(pictures), len(text))]


def render_chat(turns: Turns, tokenizer: PreTrainedTokenizerBase, generate: bool) -> tuple[str, list[Span]]:
    """The tokenizer's own chat template, without thinking; trained is what its `{% generation %}` marks enclose.

    Without marks an answer begins where the prompt of the turns before it ends, and ends with its turn, the white space
    after its end token aside. Where earlier turns are rendered otherwise than the last, as by Qwen 3, whose last answer
    alone has an empty thought in front, they stand as in the history that the model is shown, and are found by a mark.

    Raises:
        ConversationError: there is no template, it refuses the turns, or without marks the answers cannot be found.
    """
    if tokenizer.chat_template is None:
        raise ConversationError("the tokenizer has no chat template; set one, or use the template vicuna_v1.")
    template = tokenizer.get_chat_template()
    marks = GENERATION.search(template) is not None

    def render(shown: Turns, prompt: bool) -> tuple[str, list[Span]]:
        texts, spans = render_jinja_template(
            conversations=[[{"role": role, "content": words} for role, words in shown]],
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            enable_thinking=False,
            **tokenizer.special_tokens_map,
        )
        return texts[0], spans[0] if marks else []

    def begin(number: int) -> int:
        """Where the words of a turn begin in the whole text; -1 where they are not in it."""
        role, words = turns[number]
        front = len(words) - len(words.lstrip())
        marked = [*turns[:number], (role, words[:front] + BEGIN + words[front:]), *turns[number + 1 :]]
        found = render(marked, False)[0]
        return found.find(BEGIN) if found.replace(BEGIN, "") == text else -1

    try:
        text, spans = render(turns, generate)
        if generate or marks:
            return text, spans
        for number, (role, _) in enumerate(turns):
            if role == "assistant":
                prompt, turn = render(turns[:number], True)[0], render(turns[: number + 1], False)[0]
                answer = turn[len(prompt) :].rstrip()
                start = len(prompt)
                if not text.startswith(turn):
                    start, answer = begin(number), answer.lstrip()
                if not turn.startswith(prompt) or start < 0 or not text.startswith(answer, start):
                    raise ConversationError(
                        f"the chat template renders turn {number + 1} otherwise when it is asked for or others follow, "
                        "so its answer cannot be found; mark answers by {% generation %} in it, or use vicuna_v1."
                    )
                spans.append((start, start + len(answer)))
    except TemplateError as error:
        raise ConversationError(f"the chat template refuses it: {error}.") from error
    return text, spans


def tokenize(text: str, spans: list[Span], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """ids, and which of them overlap a span and so are trained on. Nothing is tokenised twice.

    A token that is only a space belongs to what follows it.
    """
    trained = bytearray(len(text) + 1)
    for start, end in spans:
        trained[start:end] = b"\1" * (end - start)
    ids: list[int] = []
    flags: list[bool] = []
    for piece, position, words in _pieces(text):
        for token, start, end in _encode(piece, tokenizer, words, first=not ids):
            ids.append(token)
            flags.append(any(trained[position + start : position + max(end, start + 1)]))
    return ids, flags


def _pieces(text: str) -> Iterator[tuple[str, int, bool]]:
    """Stretches of the text without marks, where they begin, and whether special tokens are words in them."""
    position = 0
    for match in MARKED.finditer(text):
        yield text[position : match.start()], position, False
        yield match[1] or "", match.start() + 1, True
        position = match.end()
    yield text[position:], position, False


def _encode(piece: str, tokenizer: PreTrainedTokenizerBase, words: bool, first: bool) -> list[tuple[int, int, int]]:
    """(id, first character, the one after the last) of a piece; with `words`, none of them is a special token."""
    if not piece:
        return []
    # Behind another piece no space is added in front, as sentencepiece would: it sees a new line first.
    skip = 0 if first else 1
    encoded = tokenizer(
        "\n" * skip + piece, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=words
    )
    tokens = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    if any(start < skip < end for _, (start, end) in tokens):  # the new line became part of a longer token
        return _encode(piece, tokenizer, words, first=True)
    tokens = [(token, start - skip, end - skip) for token, (start, end) in tokens if first or end > skip]
    if words and len(piece) > 1 and {token for token, _, _ in tokens} & set(special_tokens(tokenizer).values()):
        rest = _encode(piece[1:], tokenizer, words, first=False)
        return _encode(piece[:1], tokenizer, words, first) + [(token, a + 1, b + 1) for token, a, b in rest]
    return tokens
