"""Rows to ids and labels: LLaVA's own on the golden rows, and a decision for every odd row."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mllm.conversation import IGNORED, ConversationError, encode_conversation

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


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (_row("what?", ""), "r1 has an empty turn"),
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


def test_the_prompt_of_chat_is_the_beginning_of_the_training_row(chat):
    row = _row("<image>\nwhat color is the circle?", "red")
    question = {**row, "conversations": row["conversations"][:1]}
    prompt = encode_conversation(question, chat, "chat", 4, add_generation_prompt=True)["input_ids"]
    assert encode_conversation(row, chat, "chat", 4)["input_ids"][: len(prompt)] == prompt


def test_unknown_template(chat):
    with pytest.raises(ValueError, match="'alpaca'.*vicuna_v1"):
        encode_conversation(_row("a", "b"), chat, "alpaca")
