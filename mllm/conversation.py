"""LLaVA rows -> ids and labels: the one function that training, chat and evaluation build their prompts with.

Decisions for odd rows (all tested): a row may hold no image, one or several; an `image` key without placeholder puts
the picture in front of the first human turn; any other difference between the numbers of placeholders and images is an
error; a row that begins with the assistant loses that turn; a trailing human turn is dropped in training; long rows
lose whole trailing exchanges, never part of a picture; a row that is left without trained tokens is refused by id.
"""

from transformers import PreTrainedTokenizerBase

IMAGE = "<image>"
IGNORED = -100
TEMPLATES = ("vicuna_v1", "plain", "chat")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# A piece of a prompt: its text, or IMAGE; and whether its tokens are trained on.
Piece = tuple[str, bool]


class ConversationError(ValueError):
    """A row cannot be trained on; the message names its id."""


def encode_conversation(
    row: dict,
    tokenizer: PreTrainedTokenizerBase,
    template: str = "chat",
    num_image_tokens: int = 256,
    max_length: int | None = None,
    add_generation_prompt: bool = False,
) -> dict:
    """Encodes one LLaVA row.

    Args:
        row: {"id", "image" (path or list of paths, optional), "conversations": [{"from", "value"}, ...]}.
        template: "vicuna_v1" (LLaVA-1.5), "plain" (its first stage), or "chat" (the tokenizer's own chat template with
            `{% generation %}` marks, tokenised in one go).
        num_image_tokens: placeholders a picture is expanded to.
        max_length: whole trailing exchanges are dropped until the row fits; None: no limit.
        add_generation_prompt: keep a trailing human turn and append the answer's prefix.

    Returns:
        input_ids, labels (lists of the same length; IGNORED where nothing is trained), image_token_id: the tokenizer's
        image token, or len(tokenizer) where it has none.

    Raises:
        ConversationError: the row has no usable turns, a wrong number of placeholders, or no trained token.
        ValueError: unknown template.
    """
    if template not in TEMPLATES:
        raise ValueError(f"There is no conversation template {template!r}; choose one of {', '.join(TEMPLATES)}.")
    name = row.get("id", "without id")
    turns = _turns(row, name, keep_question=add_generation_prompt)
    image_token_id = image_token(tokenizer)
    if template == "chat" and image_token_id == len(tokenizer):
        raise ValueError(
            f"The chat template needs a tokenizer with the special token {IMAGE}; add it, or use vicuna_v1."
        )
    while True:
        if template == "chat":
            ids, labels = _encode_chat(turns, tokenizer, image_token_id, num_image_tokens, add_generation_prompt, name)
        else:
            pieces = (
                _vicuna(turns, tokenizer, add_generation_prompt)
                if template == "vicuna_v1"
                else _plain(turns, add_generation_prompt)
            )
            ids, labels = _encode_pieces(pieces, tokenizer, image_token_id, num_image_tokens)
        if max_length is None or len(ids) <= max_length:
            break
        if len(turns) <= 2:
            raise ConversationError(
                f"Row {name} has {len(ids)} tokens with its first exchange alone and max_length is "
                f"{max_length}; raise max_length or shorten the row."
            )
        turns = turns[:-1] if add_generation_prompt and turns[-1][0] == "assistant" else turns[:-2]
    if not add_generation_prompt and all(label == IGNORED for label in labels):
        raise ConversationError(f"Row {name} has no token to train on; give it an answer.")
    return {"input_ids": ids, "labels": labels, "image_token_id": image_token_id}


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


def _turns(row: dict, name: str, keep_question: bool) -> list[tuple[str, str]]:
    """(role, text) pairs: user and assistant alternate, beginning with the user; a system turn may come first."""
    turns: list[tuple[str, str]] = []
    for turn in row.get("conversations") or []:
        role = ROLES.get(turn.get("from"))
        if role is None:
            raise ConversationError(
                f"Row {name} has a turn from {turn.get('from')!r}; speakers are human, gpt and system."
            )
        if not isinstance(turn.get("value"), str) or (role == "assistant" and not turn["value"]):
            raise ConversationError(f"Row {name} has an empty turn; give every turn a text.")
        turns.append((role, turn["value"]))
    start = 1 if turns and turns[0][0] == "system" else 0
    if len(turns) > start and turns[start][0] == "assistant":
        del turns[start]
    for index, (role, _) in enumerate(turns[start:]):
        if role != ("user", "assistant")[index % 2]:
            raise ConversationError(f"Row {name} does not alternate between human and gpt at turn {index + 1}.")
    if turns and turns[-1][0] == "user" and not keep_question:
        turns.pop()
    if not any(role == "user" for role, _ in turns):
        raise ConversationError(f"Row {name} has no question with an answer; it needs a human and a gpt turn.")
    images, placeholders = len(images_of(row)), sum(text.count(IMAGE) for _, text in turns)
    if images == placeholders or (images == 0 and "image" not in row and not placeholders):
        return turns
    if images and not placeholders:
        first = next(index for index, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", f"{IMAGE}\n" * images + turns[first][1])
        return turns
    if (
        images == 1
        and all(role == "user" for role, text in turns if IMAGE in text)
        and sum(IMAGE in text for _, text in turns) == 1
    ):
        return turns  # several placeholders in one turn for one picture: LLaVA keeps one, see _one_image
    raise ConversationError(
        f"Row {name} has {placeholders} {IMAGE} placeholders and {images} pictures; make them equal."
    )


def _one_image(text: str) -> str:
    """LLaVA's rule for a turn with one picture: the placeholder moves to the start, on a line of its own."""
    if IMAGE not in text:
        return text
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()


def _vicuna(turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, generate: bool) -> list[Piece]:
    system = turns[0][1] if turns[0][0] == "system" else VICUNA_SYSTEM
    single = sum(text.count(IMAGE) > 0 for _, text in turns) <= 1
    pieces: list[Piece] = [(system + " ", False)]
    for role, text in turns:
        if role == "user":
            pieces.append((f"USER: {_one_image(text) if single else text} ", False))
            pieces.append(("ASSISTANT:", False))
        elif role == "assistant":
            pieces.append((f" {text}{tokenizer.eos_token}", True))
    if not generate and pieces[-1] == ("ASSISTANT:", False):
        pieces = pieces[:-2]
    return pieces


def _plain(turns: list[tuple[str, str]], generate: bool) -> list[Piece]:
    images = sum(text.count(IMAGE) for role, text in turns if role == "user")
    answers = [text for role, text in turns if role == "assistant"]
    pieces: list[Piece] = [(IMAGE * images, False)]
    return pieces if generate else [*pieces, (f"{answers[0]}\n", True)]


def _encode_pieces(
    pieces: list[Piece], tokenizer: PreTrainedTokenizerBase, image_token_id: int, num_image_tokens: int
) -> tuple[list[int], list[int]]:
    """Tokenises the text before, between and after pictures as separate pieces, as LLaVA does.

    A token is trained on when it overlaps a trained stretch of characters; nothing is tokenised twice.
    """
    text = "".join(piece for piece, _ in pieces)
    trained = [flag for piece, flag in pieces for _ in piece]
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for number, chunk in enumerate(text.split(IMAGE)):
        if number:
            ids += [image_token_id] * num_image_tokens
            labels += [IGNORED] * num_image_tokens
            position += len(IMAGE)
        encoded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
        if number == 0 and tokenizer.bos_token_id is not None:
            ids.append(tokenizer.bos_token_id)
            labels.append(IGNORED)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids.append(token)
            # A piece that is only a space belongs to what follows it.
            labels.append(token if any(trained[position + start : position + max(end, start + 1)]) else IGNORED)
        position += len(chunk)
    return ids, labels


def _encode_chat(
    turns: list[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    image_token_id: int,
    num_image_tokens: int,
    generate: bool,
    name: str,
) -> tuple[list[int], list[int]]:
    placeholder = image_placeholder(tokenizer)
    messages = [{"role": role, "content": text.replace(IMAGE, placeholder)} for role, text in turns]
    encoded = tokenizer.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=not generate,
        add_generation_prompt=generate,
    )
    masks = [0] * len(encoded["input_ids"]) if generate else encoded["assistant_masks"]
    if encoded["input_ids"].count(image_token_id) != sum(text.count(IMAGE) for _, text in turns):
        raise ConversationError(f"Row {name}: the chat template does not render {placeholder} as one token a picture.")
    ids: list[int] = []
    labels: list[int] = []
    for token, mask in zip(encoded["input_ids"], masks, strict=True):
        repeat = num_image_tokens if token == image_token_id else 1
        ids += [token] * repeat
        labels += [token if mask and token != image_token_id else IGNORED] * repeat
    return ids, labels
