"""Rows as they lie in files."""

import json

import pytest

from mllm.data import RowsError, load_rows


def row(text):
    return {"id": "r", "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "red"}]}


def test_a_list_and_lines_hold_the_same_rows(tmp_path):
    rows = [row("what\u2028color?"), row("why\x85not?")]  # which str.splitlines would cut
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    lines = "\n\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
    (tmp_path / "a.jsonl").write_text(f"{lines}\n", encoding="utf-8")
    assert load_rows(tmp_path / "a.json") == load_rows(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", json.dumps(row("?")) + "\n\n{", "is not valid JSON at line 3: "),
        ("a.json", "[\n{", "is not valid JSON at line 2: "),
        ("a.json", "[]", "holds no list of rows like .*conversations"),
        ("a.json", json.dumps({"rows": [row("?")]}), "holds no list of rows"),
        ("a.jsonl", "\n", "holds no list of rows"),
        ("a.json", json.dumps([row("?"), {"id": 1}]), "row 1 has no 'conversations'; write it like .*gpt"),
        ("a.json", json.dumps([{**row("?"), "image": 3}]), "the 'image' of row 0 is 3; give a path"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_by_place(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(RowsError, match=words):
        load_rows(tmp_path / name)


def test_a_missing_file_and_another_encoding_are_named(tmp_path):
    with pytest.raises(RowsError, match="There is no data file at .*a.json"):
        load_rows(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes('["Ü"]'.encode("latin-1"))
    with pytest.raises(RowsError, match="is not a text in UTF-8"):
        load_rows(tmp_path / "a.json")
