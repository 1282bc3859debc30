"""Rows that cannot be trained on: counted by kind before a training, skipped or refused by the same rule in it."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from mllm import inspect_data
from mllm.data import Conversations, cache_image_tokens, load_rows
from mllm.train import main as train

ASK, ANSWER = {"from": "human", "value": "<image>\nwhat color is the circle?"}, {"from": "gpt", "value": "red"}


def row(name, image="good.png", turns=(ASK, ANSWER)):
    return {"id": name, "image": image, "conversations": list(turns)}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two good rows, a row for every kind of problem, and a row that is only shortened."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "good.png")
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:60])
    Image.new("RGB", (32, 32), "red").save(tmp_path / "outside.png")
    Image.new("1", (9000, 9000)).save(folder / "large.png")
    long = {"from": "gpt", "value": "red " * 100}
    problems = {
        "picture missing": row("a", "absent.png"),
        "picture unreadable": row("b", "torn.png"),
        "picture outside folder": row("c", "../outside.png"),
        "picture too large": row("d", "large.png"),
        "placeholders and pictures differ": row("e", ["good.png", "good.png", "good.png"], (
            {"from": "human", "value": "<image> <image> what?"}, ANSWER)),
        "longer than max_length": row("f", turns=(ASK, long)),
        "empty turn": row("g", turns=(ASK, {"from": "gpt", "value": ""})),
        "unknown speaker": row("h", turns=(ASK, "red")),
        "turns do not alternate": row("i", turns=(ASK, ASK, ANSWER)),
        "no question with an answer": row("j", turns=(ASK,)),
    }  # fmt: skip
    cut = row("cut", turns=(ASK, ANSWER, {"from": "human", "value": "and?"}, long))
    (tmp_path / "odd.json").write_text(json.dumps([row("first"), *problems.values(), cut, row("last\x1b[31m")]))
    return tmp_path, list(problems)


def test_every_kind_of_problem_is_counted_and_fails_beyond_the_share(family, data, capsys):
    folder, kinds = data
    arguments = [str(folder / "odd.json"), f"--images={folder / 'images'}", f"--model={family / 'mllm'}"]
    with pytest.raises(ValueError, match=r"10 of 13 rows of .* cannot be trained on, more than the share of 0.7"):
        inspect_data.main([*arguments, "--max-length=64", "--max-share=0.7"])
    inspect_data.main([*arguments, "--max-length=64", "--max-share=0.8"])
    printed = capsys.readouterr().out
    for kind in kinds:
        assert f"{kind}: 1 rows; " in printed, kind
    assert "3 of 13 rows can be trained on, with 3 pictures" in printed and "last exchanges: 1\n" in printed


def test_rows_are_shown_as_the_model_reads_them(family, data, capsys):
    folder, _ = data
    asked = {"from": "human", "value": "<image> what\x1b[31m?"}
    (folder / "odd.json").write_text(json.dumps([row("odd", turns=(asked, ANSWER))]))
    inspect_data.main(
        [str(folder / "odd.json"), f"--images={folder / 'images'}", f"--model={family / 'mllm'}", "--template=chat"]
    )
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(family / "mllm")
    answer = printed.split("[[")[1].split("]]")[0]
    assert printed.count("[[") == 1 and answer.startswith("red") and answer != "red"  # and its end token
    assert tokenizer.decode(tokenizer(answer, add_special_tokens=False)["input_ids"]) == answer
    assert "<4 image tokens>" in printed and "\x1b" not in printed


def test_the_trainer_skips_what_inspection_finds_and_counts_it(family, data, arguments):
    folder, kinds = data
    given = [f"data={folder / 'odd.json'}", f"images={folder / 'images'}", "max_length=64", "trainer.logging_steps=1"]
    with pytest.raises(ValueError, match="Row [a-j]"):
        train(arguments("stopped", *given))
    train(arguments("skipped", *given, "on_error=skip", "trainer.max_steps=4"))
    logs = json.loads((folder / "skipped" / "history.json").read_text())["log_history"]
    counts = [entry["skipped_rows"] for entry in logs if "skipped_rows" in entry]
    # A picture is read only where the text is right; 13 rows are 4 batches of 4, all seen once.
    assert counts[-1] >= len(kinds) and counts == sorted(counts)
    with pytest.raises(ValueError, match="on_error is 'ignore'; choose one of stop, skip"):
        train(arguments("refused", *given, "on_error=ignore"))


def test_the_next_usable_row_stands_in_and_a_cache_leaves_out_the_same_pictures(family, data):
    folder, kinds = data
    rows = load_rows(folder / "odd.json")
    tokenizer = AutoTokenizer.from_pretrained(family / "mllm")

    def make(rows, on_error, **more):
        return Conversations(
            rows, tokenizer, template="chat", num_image_tokens=4, max_length=64, root=folder / "images",
            on_error=on_error, **more,
        )  # fmt: skip

    cached = cache_image_tokens(
        rows, folder / "images", lambda seen: torch.zeros(len(seen), 4, 32), batch_size=2, on_error="skip"
    )
    assert set(cached) == {"good.png"}
    with pytest.raises(ValueError, match="There is no picture at .*absent.png"):
        cache_image_tokens(rows, folder / "images", lambda seen: None)
    dataset = make(rows, "skip", tokens=cached)
    assert [dataset[index]["key"] for index in (0, 1, 5, 11)] == ["first", "cut", "cut", "cut"]
    assert dataset.skipped == len(kinds) + len(kinds) - 4
    assert [item["key"] for item in dataset] == ["first", *["cut"] * (len(kinds) + 1), "last\x1b[31m"]
    hopeless = make(rows[1:4], "skip", tokens=cached)
    with pytest.raises(ValueError, match="Row"):
        hopeless[1]
