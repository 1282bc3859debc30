"""LLaVA rows -> ids and labels: the one function that training, chat and evaluation build their prompts with.

Decisions for odd rows (all tested): a row may hold no image, one or several, whose places are `<image>` in human turns;
an `image` key without placeholder puts the picture in front of the first human turn; several placeholders in one turn
for one picture are one, at the turn's start; any other difference between the numbers of placeholders and images is an
error in training, and in a prompt such an `<image>` is text; a row that begins with the assistant loses that turn; a
trailing human turn is dropped in training, with its pictures; long rows lose whole trailing exchanges, never part of a
picture; a special token in a turn's text is text; a row that is left without trained tokens is refused by id.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NoReturn

from transformers import PreTrainedTokenizerBase

from mllm.templates import (
    PLACE,
    ConversationError,
    protected,
    render_chat,
    render_plain,
    render_vicuna,
    special_tokens,
    tokenize,
    unmarked,
)

IMAGE = "<image>"
IGNORED = -100
RENDER = {"vicuna_v1": render_vicuna, "plain": render_plain, "chat": render_chat}
TEMPLATES = tuple(RENDER)
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def encode_conversation(
    row: dict,
    tokenizer: PreTrainedTokenizerBase,
    template: str = "chat",
    num_image_tokens: int | Sequence[int] = 256,
    max_length: int | None = None,
    add_generation_prompt: bool = False,
) -> dict:
    """Encodes one LLaVA row.

    Args:
        row: {"id", "image" (path or list of paths, optional), "conversations": [{"from", "value"}, ...]}.
        template: "vicuna_v1" (LLaVA-1.5), "plain" (its first stage), or "chat" (the tokenizer's own chat template,
            tokenised in one go).
        num_image_tokens: placeholders a picture is expanded to, or one such number for each picture of the row.
        max_length: whole trailing exchanges are dropped until the row fits; None: no limit.
        add_generation_prompt: keep a trailing human turn and append the answer's prefix.

    Returns:
        input_ids, labels (lists of the same length; IGNORED where nothing is trained), image_token_id: the tokenizer's
        image token, or len(tokenizer) where it has none.

    Raises:
        ConversationError: the row has no usable turns, a wrong number of placeholders, or no trained token, or the chat
            template is missing, refuses it, or has neither `{% generation %}` marks nor turns that stay as they are
            when others follow.
        ValueError: unknown template, or another count of `num_image_tokens` than of pictures.
    """
    if not isinstance(num_image_tokens, int) and len(num_image_tokens) != len(images_of(row)):
        raise ValueError(f"There are {len(images_of(row))} pictures and num_image_tokens for {len(num_image_tokens)}.")
    if template not in TEMPLATES:
        raise ValueError(f"There is no conversation template {template!r}; choose one of {', '.join(TEMPLATES)}.")
    name = row.get("id", "without id")
    image_token_id = image_token(tokenizer)
    if template == "chat" and image_token_id == len(tokenizer):
        raise ValueError(
            f"The chat template needs a tokenizer with the special token {IMAGE}; add it, or use vicuna_v1."
        )
    turns = _turns(row, name, tokenizer, template, prompt=add_generation_prompt)
    while True:
        try:
            ids, labels = _encode(turns, tokenizer, template, image_token_id, num_image_tokens, add_generation_prompt)
        except ConversationError as error:
            raise ConversationError(f"Row {name}: {error}", error.kind) from error
        if max_length is None or len(ids) <= max_length:
            break
        if len(turns) <= 2 + (turns[0][0] == "system"):
            raise ConversationError(
                f"Row {name} has {len(ids)} tokens with its first exchange alone and max_length is "
                f"{max_length}; raise max_length or shorten the row.",
                "longer than max_length",
            )
        turns = turns[:-1] if add_generation_prompt and turns[-1][0] == "assistant" else turns[:-2]
    if not add_generation_prompt and all(label == IGNORED for label in labels):
        raise ConversationError(f"Row {name} has no token to train on; give it an answer.", "no trained token")
    return {"input_ids": ids, "labels": labels, "image_token_id": image_token_id}


def end_of_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """The special token that ends an answer in the template, or the line's end of "plain".

    None where there is none, or where the chat template does not tell what in it is the answer.
    """
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    try:
        encoded = encode_conversation(row, tokenizer, template)
    except ConversationError:
        return None
    last = [token for token in encoded["labels"] if token != IGNORED][-1]
    ends = last in special_tokens(tokenizer).values() or (template == "plain" and not tokenizer.decode([last]).strip())
    return last if ends else None


def image_placeholder(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the tokenizer's image token: the one it names itself (see mllm.language_model), else `<image>`."""
    return getattr(tokenizer, "image_token", IMAGE)


def image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's image token, or the first id after its vocabulary where it has none."""
    found = tokenizer.convert_tokens_to_ids(image_placeholder(tokenizer))
    return len(tokenizer) if found is None or found == tokenizer.unk_token_id else found


def images_of(row: dict) -> list[str]:
    """The row's picture paths, in order."""
    images = row.get("image") or []
    return [images] if isinstance(images, str) else list(images)


def _turns(
    row: dict, name: str, tokenizer: PreTrainedTokenizerBase, template: str, prompt: bool
) -> list[tuple[str, str]]:
    """(role, text) pairs: user and assistant alternate, beginning with the user; a system turn may come first.

    A picture's place is PLACE; whatever else looks like a special token is protected. A prompt keeps its last question.
    """
    turns: list[tuple[str, str]] = []
    for turn in row.get("conversations") or []:
        speaker = turn.get("from") if isinstance(turn, dict) else turn
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise ConversationError(
                f"Row {name} has a turn from {speaker!r}; speakers are human, gpt and system.", "unknown speaker"
            )
        unanswered = role == "assistant" and not turn.get("value") and not prompt  # a model may have said nothing
        if not isinstance(turn.get("value"), str) or unanswered:
            raise ConversationError(f"Row {name} has an empty turn; give every turn a text.", "empty turn")
        turns.append((role, unmarked(turn["value"])))
    start = 1 if turns and turns[0][0] == "system" else 0
    placeholders = sum(text.count(IMAGE) for role, text in turns if role == "user" or not prompt)
    if len(turns) > start and turns[start][0] == "assistant":
        del turns[start]
    for index, (role, _) in enumerate(turns[start:]):
        if role != ("user", "assistant")[index % 2]:
            raise ConversationError(
                f"Row {name} does not alternate between human and gpt at turn {index + 1}.", "turns do not alternate"
            )
    if not any(role == "user" for role, _ in turns):
        _refuse_unanswered(name)

    images = len(images_of(row))
    asked = [text.count(IMAGE) for role, text in turns if role == "user"]
    one_of_several = images == 1 < placeholders and placeholders == max(asked)
    places = one_of_several or images == placeholders == sum(asked)
    if not places and placeholders and not prompt:
        raise ConversationError(
            f"Row {name} has {placeholders} {IMAGE} placeholders and {images} pictures; "
            "make them equal, and place pictures in human turns only.",
            "placeholders and pictures differ",
        )
    if places:
        turns = [(role, text.replace(IMAGE, PLACE) if role == "user" else text) for role, text in turns]
    else:
        first = next(index for index, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", f"{PLACE}\n" * images + turns[first][1])
    if one_of_several or (template == "vicuna_v1" and images == 1):
        turns = [(role, _one_image(text)) for role, text in turns]
    # Only now is a text as it will be read: a picture taken out of a token's name would have made it whole.
    turns = [(role, PLACE.join(protected(part, tokenizer) for part in text.split(PLACE))) for role, text in turns]
    if turns[-1][0] == "user" and not prompt:
        turns.pop()
    if not prompt and not any(role == "assistant" for role, _ in turns):
        _refuse_unanswered(name)
    return turns


def _refuse_unanswered(name: str) -> NoReturn:
    raise ConversationError(
        f"Row {name} has no question with an answer; it needs a human and a gpt turn.", "no question with an answer"
    )


def _one_image(text: str) -> str:
    """LLaVA's rule for a turn with one picture: the placeholder moves to the start, on a line of its own."""
    if PLACE not in text:
        return text
    return f"{PLACE}\n{text.replace(PLACE, '').strip()}".strip()


def _encode(
    turns: list[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    image_token_id: int,
    num_image_tokens: int | Sequence[int],
    generate: bool,
) -> tuple[list[int], list[int]]:
    """ids and labels. Outside "chat" the text before, between and after pictures is tokenised apart, as LLaVA does."""
    ids: list[int] = []
    labels: list[int] = []
    numbers = repeat(num_image_tokens) if isinstance(num_image_tokens, int) else iter(num_image_tokens)
    if template == "chat":
        placeholder = image_placeholder(tokenizer)
        pictures = sum(text.count(PLACE) for _, text in turns)
        shown = [(role, text.replace(PLACE, placeholder)) for role, text in turns]
        text, spans = render_chat(shown, tokenizer, generate)
        tokens, trained = tokenize(text, spans, tokenizer)
        if tokens.count(image_token_id) != pictures:
            raise ConversationError(f"the chat template does not render {placeholder} as one token a picture.")
        for token, flag in zip(tokens, trained, strict=True):
            number = next(numbers) if token == image_token_id else 1
            ids += [token] * number
            labels += [token if flag and token != image_token_id else IGNORED] * number
        return ids, labels
    text, spans = RENDER[template](turns, tokenizer, generate)
    if tokenizer.bos_token_id is not None:
        ids, labels = [tokenizer.bos_token_id], [IGNORED]
    position = 0
    for index, chunk in enumerate(text.split(PLACE)):
        if index:
            number = next(numbers)
            ids += [image_token_id] * number
            labels += [IGNORED] * number
            position += len(PLACE)
        inside = [(max(start - position, 0), min(end - position, len(chunk))) for start, end in spans]
        tokens, trained = tokenize(chunk, [span for span in inside if span[0] < span[1]], tokenizer)
        ids += tokens
        labels += [token if flag else IGNORED for token, flag in zip(tokens, trained, strict=True)]
        position += len(chunk)
    return ids, labels
