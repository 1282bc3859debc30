"""Public benchmarks: their files in miniature, their scores by hand, and the command."""

import json

import pytest
from PIL import Image

from mllm import benchmarks, scorers
from mllm.evaluate import main


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two dogs.", "2 dogs"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("10,000", "10000"),
        ("3.5 m", "3.5 m"),
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("An apple, a pear?", "apple pear"),
        ("dog's", "dog 's"),
    ],
)
def test_answers_are_normalised_as_evalai_does(text, normal):
    assert scorers.vqa_answer(text) == normal


def test_vqa_counts_annotators_but_one():
    answers = ["2"] * 3 + ["three"] * 7
    # Leaving out one of the three leaves two who agree: (3 x 2/3 + 7 x 1) / 10.
    assert scorers.vqa(["two"], [answers]) == pytest.approx(0.9)
    assert scorers.vqa(["3", "four"], [answers, answers]) == pytest.approx(0.5)
    assert scorers.vqa(["2"], [["2"] + ["no"] * 9]) == pytest.approx(9 / 10 / 3)


def test_letters_are_read_as_published():
    assert [scorers.scienceqa_letter(text, 3) for text in ("B", "B. text", "The answer is C.", "D", "b", "E. no")] == [
        "B", "B", "C", None, None, None,
    ]  # fmt: skip
    assert [scorers.seed_letter(text) for text in (" B", "A. yes", "")] == ["B", "A", ""]
    assert scorers.gqa(["Yes.", "left side", " no"], ["yes", "left", "no"]) == pytest.approx(2 / 3)


def test_pope_is_the_mean_of_its_files(tmp_path):
    files = [
        write(tmp_path / f"coco_pope_{name}.json", "\n".join(json.dumps(
            {"question_id": number, "image": "a.jpg", "text": "Is there a cat in the image?", "label": label}
        ) for number, label in enumerate(("yes", "no"))))
        for name in ("random", "popular")
    ]  # fmt: skip
    items = benchmarks.read("pope", files)
    assert items[0].prompt == "Is there a cat in the image?\nAnswer the question using a single word or phrase."
    assert len({item.id for item in items}) == 4  # each file begins with question 0
    found = benchmarks.score_pope(items, ["Yes", "No", "no", "no"])
    assert found["groups"]["random"]["f1"] == 1 and found["groups"]["popular"]["f1"] == 0 and found["f1"] == 0.5


def test_mme_reads_both_layouts(tmp_path):
    for text, picture in (
        ("existence/1.txt", "existence/1.png"),
        ("artwork/questions_answers_YN/2.txt", "artwork/images/2.png"),
    ):
        write(tmp_path / "mme" / text, "Is it? Please answer yes or no.\tYes\nIsn't it? Please answer yes or no.\tNo\n")
        (tmp_path / "mme" / picture).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "mme" / picture)
    items = benchmarks.read("mme", [tmp_path / "mme"])
    assert {item.image for item in items} == {"existence/1.png", "artwork/images/2.png"}
    assert all("Please answer" not in item.prompt for item in items)
    # artwork: both right (200); existence: one of two (50).
    assert benchmarks.score_mme(items, ["yes", "no", "yes", "yes"]) == {"perception": 250.0, "cognition": 0.0}


def test_vqa_reads_vqav2_and_textvqa(tmp_path):
    questions = write(
        tmp_path / "q.json",
        {"data_subtype": "val2014", "questions": [{"question_id": 7, "image_id": 42, "question": "What?"}]},
    )
    annotations = write(
        tmp_path / "a.json", {"annotations": [{"question_id": 7, "answers": [{"answer": "cat"}] * 10}]}
    )
    (item,) = benchmarks.read("vqa", [questions, annotations])
    assert item.image == "COCO_val2014_000000000042.jpg" and benchmarks.score_vqa([item], ["A cat."]) == {"accuracy": 1}
    row = {"question_id": 1, "image_id": "f", "question": "what?", "answers": ["x"] * 10}
    (item,) = benchmarks.read("vqa", [write(tmp_path / "t.json", {"data": [row]})])
    assert item.image == "f.jpg" and item.prompt.startswith("What?\n")
    with pytest.raises(benchmarks.BenchmarkError, match="needs its questions and its annotations"):
        benchmarks.read("vqa", [questions])


def test_multiple_choice_is_scored_by_group(tmp_path):
    problem = {"question": "Which?", "choices": ["red", "blue"], "answer": 1, "hint": "", "image": "image.png"}
    files = [
        write(tmp_path / "problems.json", {"1": problem, "2": {**problem, "image": None}, "3": problem}),
        write(tmp_path / "pid_splits.json", {"train": ["3"], "test": ["1", "2"]}),
    ]
    items = benchmarks.read("scienceqa", files)
    assert [item.image for item in items] == ["1/image.png", None]
    assert "Options: (A) red (B) blue\nAnswer with the option's letter" in items[0].prompt
    assert benchmarks.score_scienceqa(items, ["B", "A"]) == {"accuracy": 0.5, "groups": {"image": 1.0, "text": 0.0}}
    question = {"question_id": "9", "question": "Which?", "data_id": "p.jpg", "answer": "C", "question_type_id": 1,
                "data_type": "image", **{f"choice_{letter}": letter for letter in "abcd"}}  # fmt: skip
    data = {"question_type": {"Scene": 1}, "questions": [question, {**question, "data_type": "video"}]}
    (item,) = benchmarks.read("seed", [write(tmp_path / "SEED-Bench.json", data)])
    assert benchmarks.score_seed([item], ["C. c"]) == {"accuracy": 1.0, "groups": {"Scene": 1.0}}


def test_the_command_scores_and_says_what_the_score_depends_on(family, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "1.jpg")
    data = write(tmp_path / "gqa.json", {"a": {"imageId": "1", "question": "is it red?", "answer": "yes"}})
    main([f"--model={family / 'mllm'}", "--benchmark=gqa", f"--data={data}", f"--images={tmp_path}",
          f"--out={tmp_path / 'report.json'}"])  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["questions"] == 1 and 0 <= report["gqa"]["accuracy"] <= 1 and set(report["answers"]) == {"a"}
    assert {"weights", "template", "prompt", "dtype", "versions"} <= set(report["provenance"])
    assert report["provenance"]["template"] == "chat"


def test_what_cannot_be_scored_is_refused(family, tmp_path):
    turns = [{"from": "human", "value": "what?"}]
    data = write(tmp_path / "rows.json", [{"id": "r", "conversations": turns}])
    given = [f"--model={family / 'mllm'}", f"--data={data}"]
    with pytest.raises(ValueError, match="Row r does not begin with a question and its answer"):
        main([*given, f"--images={tmp_path}"])
    for option in ("--blind", "--shuffle", "--train=a.json"):
        with pytest.raises(ValueError, match="belong to own rows; leave them out of a --benchmark"):
            main([*given, f"--images={tmp_path}", "--benchmark=gqa", option])


def test_a_wrong_file_is_one_sentence(tmp_path):
    with pytest.raises(benchmarks.BenchmarkError, match="There is no .*missing.json.*testdev_balanced"):
        benchmarks.read("gqa", [tmp_path / "missing.json"])
    with pytest.raises(benchmarks.BenchmarkError, match="is not what seed publishes.*SEED-Bench.json"):
        benchmarks.read("seed", [write(tmp_path / "x.json", {"a": 1})])


def test_a_question_of_scienceqa_with_more_choices_than_letters_is_not_cut(tmp_path):
    problem = {"question": "Which?", "choices": list("abcdefghijk"), "answer": 10, "hint": "", "image": None}
    files = [write(tmp_path / "problems.json", {"1": problem}), write(tmp_path / "pid_splits.json", {"test": ["1"]})]
    with pytest.raises(benchmarks.BenchmarkError, match="is not what scienceqa publishes"):
        benchmarks.read("scienceqa", files)
