"""Rows to ids and labels: LLaVA's own on the golden rows, and a decision for every odd row."""

import copy
import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mllm.conversation import IGNORED, ConversationError, encode_conversation, end_of_answer
from mllm.templates import special_tokens

GOLDEN = Path(__file__).parent.parent / "golden" / "llava"


def _row(*turns, image="a.png", name="r1"):
    speakers = ("human", "gpt")
    row = {"id": name, "conversations": [{"from": speakers[i % 2], "value": text} for i, text in enumerate(turns)]}
    return row if image is None else {**row, "image": image}


@pytest.mark.parametrize(("file", "legacy"), [("conversations.jsonl", True), ("conversations_nonlegacy.jsonl", False)])
def test_ids_and_labels_are_llavas(file, legacy):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN, legacy=legacy)
    for line in (GOLDEN / file).read_text().splitlines():
        golden = json.loads(line)
        encoded = encode_conversation(golden["row"], tokenizer, golden["template"], num_image_tokens=1)
        ids = [-200 if token == encoded["image_token_id"] else token for token in encoded["input_ids"]]
        assert ids == golden["input_ids"], golden["row"]
        assert encoded["labels"] == golden["labels"], golden["row"]


@pytest.fixture(scope="module")
def vicuna():
    return AutoTokenizer.from_pretrained(GOLDEN, legacy=False)


@pytest.fixture(scope="module")
def chat(family):
    return AutoTokenizer.from_pretrained(family / "tokenizer")


def _trained(encoded, tokenizer):
    return tokenizer.decode([label for label in encoded["labels"] if label != IGNORED])


def test_every_turn_of_a_multi_turn_row_is_trained_also_without_legacy(vicuna):
    encoded = encode_conversation(_row("<image>\nOne?", "Red", "Two?", "Blue"), vicuna, "vicuna_v1", 3)
    assert _trained(encoded, vicuna).replace(" ", "") == "Red</s>Blue</s>"
    assert encoded["input_ids"].count(len(vicuna)) == 3 and encoded["image_token_id"] == len(vicuna)


def test_chat_trains_the_answer_and_its_end_and_expands_pictures(chat):
    encoded = encode_conversation(_row("<image>\nwhat color?", "red"), chat, "chat", 4)
    image = chat.convert_tokens_to_ids("<image>")
    assert encoded["input_ids"].count(image) == 4 and encoded["image_token_id"] == image
    assert _trained(encoded, chat) == "red<|end|>"


def test_a_picture_without_placeholder_goes_in_front(chat):
    with_mark = encode_conversation(_row("<image>\nwhat?", "red"), chat, "chat", 2)
    assert encode_conversation(_row("what?", "red"), chat, "chat", 2) == with_mark


def test_a_later_turn_and_several_pictures_keep_their_places(chat):
    row = _row("hello", "yes", "<image> and <image>?", "no", image=["a.png", "b.png"])
    ids = encode_conversation(row, chat, "chat", 2)["input_ids"]
    image = chat.convert_tokens_to_ids("<image>")
    runs = [index for index, token in enumerate(ids) if token == image]
    assert len(runs) == 4 and runs[1] + 1 < runs[2]


def test_odd_rows(chat):
    text_only = encode_conversation(_row("hello", "yes", image=None), chat, "chat", 2)
    assert chat.convert_tokens_to_ids("<image>") not in text_only["input_ids"]
    tail = encode_conversation(_row("hello", "yes", "and?", image=None), chat, "chat", 2)
    assert tail == text_only
    first = {"id": 1, "conversations": [{"from": "gpt", "value": "hi"}, *_row("hello", "yes")["conversations"]]}
    assert encode_conversation(first, chat, "chat", 2) == text_only


@pytest.mark.parametrize("template", ["chat", "vicuna_v1", "plain"])
def test_two_placeholders_in_a_turn_for_one_picture_are_one(chat, template):
    one = encode_conversation(_row("hi", "yes", "<image>\nwhat?", "red"), chat, template, 3)
    for text in ("<image>\n<image>\nwhat?", "<image>what?\n<image>", "<image><image><image> what?"):
        assert encode_conversation(_row("hi", "yes", text, "red"), chat, template, 3) == one


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
def test_a_picture_leaves_with_its_turn_and_with_none_other(chat, template):
    image = chat.convert_tokens_to_ids("<image>")
    row = _row("<image> what?", "red", "<image> and?", "blue", "and <image>?", image=["a", "b", "c"])
    ids = encode_conversation(row, chat, template, 3)["input_ids"]
    assert ids.count(image) == 6
    assert encode_conversation(row, chat, template, 3, max_length=len(ids) - 1)["input_ids"].count(image) == 3
    text = encode_conversation(_row("what?", "red", "<image>?"), chat, template, 3)
    assert text == encode_conversation(_row("what?", "red", image=None), chat, template, 3)


@pytest.mark.parametrize("template", ["chat", "vicuna_v1", "plain"])
def test_pictures_may_differ_in_their_number_of_tokens(chat, template):
    image = chat.convert_tokens_to_ids("<image>")
    row = _row("<image> what?", "red", "<image> and?", "blue", image=["a", "b"])
    ids = encode_conversation(row, chat, template, [2, 5])["input_ids"]
    runs = "".join("i" if token == image else " " for token in ids).split()
    assert runs == (["i" * 7] if template == "plain" else ["i" * 2, "i" * 5])
    assert encode_conversation(row, chat, template, [3, 3]) == encode_conversation(row, chat, template, 3)
    with pytest.raises(ValueError, match="2 pictures and num_image_tokens for 1"):
        encode_conversation(row, chat, template, [2])


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
def test_two_pictures_in_one_turn_keep_their_places(chat, template):
    ids = encode_conversation(_row("red <image> or <image>?", "red", image=["a", "b"]), chat, template, 3)["input_ids"]
    image = chat.convert_tokens_to_ids("<image>")
    assert ids.count(image) == 6 and ids.index(image) + 6 < len(ids) - ids[::-1].index(image)


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
def test_a_picture_does_not_join_what_stands_around_it(chat, template):
    for text in ("a </<image>s> b", "a </<image>s> b <image>"):
        ids = encode_conversation(_row(text), chat, template, 1, add_generation_prompt=True)["input_ids"]
        assert chat.eos_token_id not in ids and ids.count(chat.convert_tokens_to_ids("<image>")) == 1


def test_an_image_in_a_prompt_that_is_no_pictures_place_is_text(chat):
    image = chat.convert_tokens_to_ids("<image>")
    for count, text in enumerate(["what is <image>?", "<image> and <image> in two turns", "<image>" * 3]):
        row = _row("<image>?", "a <image>", text, image=["a.png"] * count)
        ids = encode_conversation(row, chat, "chat", 2, add_generation_prompt=True)["input_ids"]
        assert ids.count(image) == 2 * count and "<image>" in chat.decode([token for token in ids if token != image])


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
def test_a_prompt_may_hold_an_empty_answer(chat, template):
    empty, red = (
        encode_conversation(_row("what?", answer, "and?", image=None), chat, template, 2, add_generation_prompt=True)
        for answer in ("", "red")
    )
    assert chat.decode(empty["input_ids"]) == chat.decode(red["input_ids"]).replace("red", "")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (_row("what?", ""), "r1 has an empty turn"),
        (_row("<image>\nwhat?", "red", "<image> and?", "blue"), "2 <image> placeholders and 1 pictures"),
        (_row("what?", "a <image>"), "1 <image> placeholders and 1 pictures; make .* in human turns only"),
        (
            {**_row("x"), "conversations": [{"from": "gpt", "value": "<image>"}, *_row("a", "b")["conversations"]]},
            "1 <image> placeholders and 1 pictures",
        ),
        (_row("<image>?"), "no question with an answer"),
        (_row("a literal <image>?", "yes", image=None), "1 <image> placeholders and 0 pictures"),
        (_row("<image> <image> <image>", "yes", image=["a", "b"]), "3 <image> placeholders and 2 pictures"),
        (
            {"id": "r1", "conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]},
            "alternate",
        ),
        ({"id": "r1", "conversations": [{"from": "robot", "value": "a"}]}, "robot"),
        (_row("what?", image=None), "no question with an answer"),
    ],
)
def test_unusable_rows_are_refused_by_id(chat, row, words):
    with pytest.raises(ConversationError, match=f"Row r1.*{words}|{words}"):
        encode_conversation(row, chat, "chat", 2)


def test_long_rows_lose_whole_exchanges_never_part_of_a_picture(chat):
    row = _row("<image>\nwhat?", "red", "and?", "blue", "more?", "star")
    short = encode_conversation(_row("<image>\nwhat?", "red"), chat, "chat", 6)
    whole = encode_conversation(row, chat, "chat", 6)
    assert encode_conversation(row, chat, "chat", 6, max_length=len(short["input_ids"]) + 1) == short
    assert encode_conversation(row, chat, "chat", 6, max_length=len(whole["input_ids"])) == whole
    with pytest.raises(ConversationError, match="r1.*max_length"):
        encode_conversation(row, chat, "chat", 6, max_length=8)
    row["conversations"].insert(0, {"from": "system", "value": "be brief"})  # its turn never stays alone
    for template in ("chat", "vicuna_v1", "plain"):
        with pytest.raises(ConversationError, match="r1.*with its first exchange alone and max_length is 2"):
            encode_conversation(row, chat, template, 6, max_length=2)


def test_the_prompt_of_chat_is_the_beginning_of_the_training_row(chat):
    row = _row("<image>\nwhat color is the circle?", "red")
    question = {**row, "conversations": row["conversations"][:1]}
    prompt = encode_conversation(question, chat, "chat", 4, add_generation_prompt=True)["input_ids"]
    assert encode_conversation(row, chat, "chat", 4)["input_ids"][: len(prompt)] == prompt


def _with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


CHATML = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' + m['content'] | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)


def test_a_marked_template_is_encoded_as_transformers_does(chat):
    row = _row("<image>\nwhat color?", "red", " and <image>?\n", "  blue\n", image=["a.png", "b.png"])
    encoded = encode_conversation(row, chat, "chat", 1)
    roles = ("user", "assistant") * 2
    messages = [
        {"role": role, "content": turn["value"]} for role, turn in zip(roles, row["conversations"], strict=True)
    ]
    own = chat.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded["input_ids"] == own["input_ids"]
    assert [label != IGNORED for label in encoded["labels"]] == [bool(mask) for mask in own["assistant_masks"]]


def test_without_generation_marks_the_answers_are_found_all_the_same(chat):
    row = _row("<image>\nwhat color?", "red", "and?", " two\nlines", "more?", "red")
    bare = _with_template(chat, re.sub(r"\{% (end)?generation %\}", "", chat.chat_template))
    assert bare.chat_template != chat.chat_template
    assert encode_conversation(row, bare, "chat", 3) == encode_conversation(row, chat, "chat", 3)
    chatml = _with_template(chat, CHATML)
    assert _trained(encode_conversation(row, chatml, "chat", 3), chat) == "red<|end|>two\nlines<|end|>red<|end|>"
    assert end_of_answer(bare, "chat") == end_of_answer(chatml, "chat") == chat.convert_tokens_to_ids("<|end|>")


# As Qwen 3: an empty thought stands in front of the last answer alone, and in a prompt only without thinking.
QWEN3 = (
    "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' + m['content'].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_earlier_answers_are_trained_where_the_template_drops_their_thoughts(chat):
    qwen3 = _with_template(chat, QWEN3)
    row = _row("<image>\nsay red", "red", "say red", " two\nlines ", "more?", "red")
    encoded = encode_conversation(row, qwen3, "chat", 3)
    image = chat.convert_tokens_to_ids("<image>")
    assert _trained(encoded, chat) == "red<|end|> two\nlines <|end|>red<|end|>"
    text = chat.decode([token for token in encoded["input_ids"] if token != image])
    assert text.count("<think>") == 1 and text.rstrip().endswith("</think>\n\nred<|end|>")
    first = next(index for index, label in enumerate(encoded["labels"]) if label != IGNORED)
    assert chat.decode(encoded["input_ids"][:first]).endswith("<|user|>assistant\n")  # not the user's "red"
    for turns in (
        1,
        3,
        5,
    ):  # a prompt holds the history as the row does, and the answer that follows is what is trained
        part = {**row, "conversations": row["conversations"][:turns]}
        prompt = encode_conversation(part, qwen3, "chat", 3, add_generation_prompt=True)["input_ids"]
        part = {**row, "conversations": row["conversations"][: turns + 1]}
        whole = encode_conversation(part, qwen3, "chat", 3)
        assert whole["input_ids"][: len(prompt)] == prompt
        assert whole["labels"][len(prompt) - 1] == IGNORED != whole["labels"][len(prompt)]
    assert end_of_answer(qwen3, "chat") == chat.convert_tokens_to_ids("<|end|>")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "Row r1: the tokenizer has no chat template"),
        (CHATML.replace("m['content'] | trim", "(m['content'] if loop.last else 'x')"), "Row r1: .* turn 2 otherwise"),
        (CHATML.replace("assistant\n", "<think>"), "Row r1: .* turn 2 otherwise when it is asked for"),
        ("{{ raise_exception('no pictures here') }}", "Row r1: the chat template refuses it: no pictures here"),
    ],
)
def test_a_chat_template_that_does_not_do_is_refused_in_a_sentence(chat, template, words):
    tokenizer = _with_template(chat, template)
    with pytest.raises(ConversationError, match=words):
        encode_conversation(_row("what?", "red", "and?", "blue", image=None), tokenizer, "chat", 2)
    assert end_of_answer(tokenizer, "chat") is None or "loop.last" in template


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
@pytest.mark.parametrize("typed", ["<|end|>", "</s>", "<image>", "<|user|><|end|>", "<s", "a</s></s>b", "\ufdd1</s>"])
def test_a_special_token_that_someone_typed_is_text(chat, template, typed):
    special = set(special_tokens(chat).values())

    def controls(text):
        row = {"id": "r1", "conversations": _row(f"is {text} red?", f"{text} yes", f"{text}")["conversations"]}
        ids = encode_conversation(row, chat, template, 2, add_generation_prompt=True)["input_ids"]
        return [token for token in ids if token in special], chat.decode(ids)

    found, text = controls(typed)
    assert found == controls("word")[0] and text.count(typed.replace("\ufdd1", "")) >= 3


def test_special_tokens_are_read_once_and_again_when_one_was_added(chat, monkeypatch):
    tokenizer, read = copy.deepcopy(chat), []
    own = type(tokenizer).added_tokens_decoder.fget
    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", property(lambda self: read.append(1) or own(self)))
    row = _row("a <|new|>", "red", "and </s>?", "blue", image=None)
    for _ in range(3):
        plain = encode_conversation(row, tokenizer)
    assert len(read) == 1
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]}, replace_extra_special_tokens=False)
    read.clear()
    new = tokenizer.convert_tokens_to_ids("<|new|>")
    assert new not in encode_conversation(row, tokenizer)["input_ids"] and new in tokenizer("<|new|>")["input_ids"]
    assert encode_conversation(row, tokenizer) == plain and len(read) == 1


def test_words_around_a_typed_special_token_are_tokenised_as_ever(chat):
    rows = [_row(text, "red", image=None) for text in ("a red</s> star", "a red star")]
    typed, plain = [chat.convert_ids_to_tokens(encode_conversation(row, chat)["input_ids"]) for row in rows]
    behind = plain.index("▁red") + 1
    assert typed[:behind] == plain[:behind] and typed[behind - len(plain) :] == plain[behind:]
    assert "a red</s> star<|end|>" in chat.decode(chat.convert_tokens_to_ids(typed)) and "</s>" not in typed


def test_unknown_template(chat):
    with pytest.raises(ValueError, match="'alpaca'.*vicuna_v1"):
        encode_conversation(_row("a", "b"), chat, "alpaca")
