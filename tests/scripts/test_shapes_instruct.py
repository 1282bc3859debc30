"""The two stages' rows out of `shapes`: true of their pictures, mixed as the text says."""

import json
from collections import Counter

from scripts.shapes_instruct import ASK, QUESTIONS, main
from training.shapes.text import caption_facts, captions
from training.shapes.write import question_rows, scene_at


def test_captions_name_most_and_questions_are_the_pictures_own(tmp_path):
    count = 20
    for out in ("a", "b"):
        main(["--out", str(tmp_path / out), f"--count={count}"])
    rows = {name: json.loads((tmp_path / "a" / f"{name}.json").read_text()) for name in ("captions", "instruct")}
    assert rows["instruct"] == json.loads((tmp_path / "b" / "instruct.json").read_text())
    for index, row in enumerate(rows["captions"]):
        human, gpt = row["conversations"]
        assert human["value"] == "<image>" and row["image"] == f"{index:08d}.png"
        wordings = captions(scene_at("train", index))
        assert gpt["value"] in wordings and len(gpt["value"]) == max(map(len, wordings))
        assert caption_facts(gpt["value"]).background == scene_at("train", index).background
    asked = [row for row in rows["instruct"] if row["conversations"][0]["value"] == f"<image>\n{ASK}"]
    questions = [row for row in rows["instruct"] if row not in asked]
    own = {row["id"]: row for row in question_rows("train", count, 0)}
    assert sorted(row["image"] for row in asked) == [f"{index:08d}.png" for index in range(count)]
    assert all(own[row["id"]] == row for row in questions) and len({row["id"] for row in questions}) == len(questions)
    assert Counter(row["image"] for row in questions) == {f"{index:08d}.png": QUESTIONS for index in range(count)}
    assert [row["image"] for row in rows["instruct"]] != sorted(row["image"] for row in rows["instruct"])
