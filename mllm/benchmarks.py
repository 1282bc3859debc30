"""Public benchmarks as their authors publish them: local files -> questions -> scores.

Prompts are LLaVA-1.5's. Each reader takes the files that the benchmark's own site offers; pictures lie in a folder.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm import scorers

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


class BenchmarkError(ValueError):
    """A benchmark's file cannot be read; the message names file and question."""


@dataclass
class Item:
    """One question: its prompt, its picture relative to the pictures' folder, its answer(s), and the group it is in."""

    id: str
    prompt: str
    image: str | None
    answer: Any
    group: str = "all"


def read_pope(files: Sequence[Path]) -> list[Item]:
    """coco_pope_{random,popular,adversarial}.json: a JSON object a line; each file numbers its questions from 1."""
    items = []
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            group = path.stem.removeprefix("coco_pope_")
            items.append(Item(f"{group}/{row['question_id']}", row["text"] + SHORT, row["image"], row["label"], group))
    return items


def score_pope(items: Sequence[Item], answers: Sequence[str]) -> dict:
    """scorers.pope of each file, and the mean of their F1, which is what LLaVA's table prints."""
    groups = {
        name: scorers.pope([answer for _, answer in rows], [item.answer for item, _ in rows])
        for name, rows in _grouped(items, answers).items()
    }
    return {"f1": sum(found["f1"] for found in groups.values()) / len(groups), "groups": groups}


def read_mme(files: Sequence[Path]) -> list[Item]:
    """MME_Benchmark_release_version: a folder a category, `NAME.txt` ("question<TAB>answer" a line) beside its picture.

    Some categories hold the texts in `questions_answers_YN/` and the pictures in `images/`.
    """
    (root,) = files
    items = []
    for text in sorted(root.rglob("*.txt")):
        category = text.relative_to(root).parts[0]
        if category not in scorers.PERCEPTION + scorers.COGNITION:
            continue
        beside = text.parent.parent / "images" if text.parent.name == "questions_answers_YN" else text.parent
        pictures = [path for ending in ("png", "jpg", "jpeg") for path in beside.glob(f"{text.stem}.{ending}")]
        if not pictures:
            raise BenchmarkError(f"{text} has no picture {text.stem}.png or .jpg in {beside}.")
        for number, line in enumerate(text.read_text(encoding="utf-8").splitlines()):
            question, answer = line.split("\t")
            prompt = question.replace(" Please answer yes or no.", "") + SHORT
            image = pictures[0].relative_to(root).as_posix()
            items.append(Item(f"{category}/{text.stem}/{number}", prompt, image, answer, category))
    return items


def score_mme(items: Sequence[Item], answers: Sequence[str]) -> dict:
    """Perception (at most 2000) and cognition (at most 800)."""
    return scorers.mme([
        {"question_id": item.image, "category": item.group, "answer": item.answer, "prediction": answer}
        for item, answer in zip(items, answers, strict=True)
    ])  # fmt: skip


def read_vqa(files: Sequence[Path]) -> list[Item]:
    """VQAv2's questions and annotations (two files), or TextVQA's one file, which holds both."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    questions = next((part["questions"] for part in parts if "questions" in part), None)
    annotations = next((part["annotations"] for part in parts if "annotations" in part), None)
    if questions is not None and annotations is not None:
        subset = parts[0].get("data_subtype", "val2014")
        given = {row["question_id"]: [entry["answer"] for entry in row["answers"]] for row in annotations}
        return [
            Item(str(row["question_id"]), row["question"] + SHORT, f"COCO_{subset}_{row['image_id']:012d}.jpg",
                 given[row["question_id"]])
            for row in questions
        ]  # fmt: skip
    if len(parts) != 1 or "data" not in parts[0]:
        raise BenchmarkError(
            f"{', '.join(map(str, files))}: VQAv2 needs its questions and its annotations file, TextVQA its one file."
        )
    return [
        Item(str(row["question_id"]), row["question"].capitalize() + SHORT, f"{row['image_id']}.jpg", row["answers"])
        for row in parts[0]["data"]
    ]


def score_vqa(items: Sequence[Item], answers: Sequence[str]) -> dict:
    """Accuracy between 0 and 1."""
    return {"accuracy": scorers.vqa(answers, [item.answer for item in items])}


def read_gqa(files: Sequence[Path]) -> list[Item]:
    """testdev_balanced_questions.json."""
    (path,) = files
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Item(key, row["question"] + SHORT, f"{row['imageId']}.jpg", row["answer"]) for key, row in rows.items()]


def score_gqa(items: Sequence[Item], answers: Sequence[str]) -> dict:
    """Accuracy between 0 and 1."""
    return {"accuracy": scorers.gqa(answers, [item.answer for item in items])}


def read_scienceqa(files: Sequence[Path]) -> list[Item]:
    """problems.json and pid_splits.json; the test split. Pictures are `ID/image.png`; many questions have none."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    splits = next((part for part in parts if "test" in part), None)
    problems = next((part for part in parts if part is not splits), None)
    if splits is None or problems is None:
        raise BenchmarkError(f"{', '.join(map(str, files))}: ScienceQA needs problems.json and pid_splits.json.")
    items = []
    for key in splits["test"]:
        row = problems[key]
        letters = scorers.LETTERS[: len(row["choices"])]
        options = " ".join(f"({letter}) {choice}" for letter, choice in zip(letters, row["choices"], strict=True))
        prompt = f"Context: {row['hint'] or 'N/A'}\nQuestion: {row['question']}\nOptions: {options}{LETTER}"
        image = f"{key}/{row['image']}" if row["image"] else None
        answer = (letters[row["answer"]], len(letters))
        items.append(Item(key, prompt, image, answer, "image" if image else "text"))
    return items


def score_scienceqa(items: Sequence[Item], answers: Sequence[str]) -> dict:
    """Accuracy between 0 and 1, over all and over the questions with and without a picture."""
    hits = [
        scorers.scienceqa_letter(answer.strip(), item.answer[1]) == item.answer[0]
        for item, answer in zip(items, answers, strict=True)
    ]
    return _accuracies(items, hits)


def read_seed(files: Sequence[Path]) -> list[Item]:
    """SEED-Bench.json, its questions about pictures (those about videos need frames and are left out)."""
    (path,) = files
    found = json.loads(path.read_text(encoding="utf-8"))
    kinds = {number: name for name, number in found["question_type"].items()}
    items = []
    for row in found["questions"]:
        if row["data_type"] != "image":
            continue
        choices = "\n".join(f"{letter}. {row[f'choice_{letter.lower()}']}" for letter in "ABCD")
        items.append(Item(str(row["question_id"]), f"{row['question']}\n{choices}{LETTER}", row["data_id"],
                          row["answer"], kinds[row["question_type_id"]]))  # fmt: skip
    return items


def score_seed(items: Sequence[Item], answers: Sequence[str]) -> dict:
    """Accuracy between 0 and 1, over all and by kind of question."""
    return _accuracies(items, [scorers.seed_letter(a) == item.answer for item, a in zip(items, answers, strict=True)])


def read(name: str, files: Sequence[Path]) -> list[Item]:
    """The questions of a benchmark.

    Raises:
        BenchmarkError: a file is missing, or not what the benchmark publishes.
    """
    for path in files:
        if not path.exists():
            raise BenchmarkError(f"There is no {path}; give the files of {name} as published: {READ[name].__doc__}")
    try:
        items = READ[name](files)
    except BenchmarkError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BenchmarkError(
            f"{', '.join(map(str, files))} is not what {name} publishes ({type(error).__name__}: {error}); "
            f"expected: {READ[name].__doc__}"
        ) from error
    if not items:
        raise BenchmarkError(f"{', '.join(map(str, files))} holds no question of {name}.")
    return items


def _grouped(items: Sequence[Item], values: Sequence[Any]) -> dict[str, list[tuple[Item, Any]]]:
    groups: dict[str, list[tuple[Item, Any]]] = defaultdict(list)
    for item, value in zip(items, values, strict=True):
        groups[item.group].append((item, value))
    return dict(groups)


def _accuracies(items: Sequence[Item], hits: Sequence[bool]) -> dict:
    groups = {name: sum(hit for _, hit in rows) / len(rows) for name, rows in sorted(_grouped(items, hits).items())}
    return {"accuracy": sum(hits) / len(hits), "groups": groups}


READ: dict[str, Callable[[Sequence[Path]], list[Item]]] = {
    "pope": read_pope,
    "mme": read_mme,
    "vqa": read_vqa,
    "gqa": read_gqa,
    "scienceqa": read_scienceqa,
    "seed": read_seed,
}
SCORE: dict[str, Callable[[Sequence[Item], Sequence[str]], dict]] = {
    "pope": score_pope,
    "mme": score_mme,
    "vqa": score_vqa,
    "gqa": score_gqa,
    "scienceqa": score_scienceqa,
    "seed": score_seed,
}
