"""Question answering by kind, exact match: python -m mllm.evaluate --model runs/mllm --data q.json --images images

Beside it: the majority answer of each kind in `--train` rows, and (`--shuffle`) the model shown the wrong pictures.
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

from mllm.chat_model import DTYPES, ChatModel, add_device_arguments
from mllm.conversation import images_of
from mllm.data import load_picture, load_rows, without_pictures
from training.cli import run_cli
from training.statistics import share

BATCH = 64


def answer_rows(model: ChatModel, rows: list[dict], root: Path, shift: int = 0) -> list[str]:
    """The model's answers to the first question of each row; with `shift`, shown the picture of another row."""
    answers: list[str] = []
    for start in tqdm(range(0, len(rows), BATCH), desc="questions", mininterval=2):
        requests = []
        for index in range(start, min(start + BATCH, len(rows))):
            other = rows[(index + shift) % len(rows)]
            pictures = [load_picture(name, root, rows[index].get("id")) for name in images_of(other)]
            text = rows[index]["conversations"][0]["value"]
            requests.append(([{"role": "user", "content": text}], pictures))
        answers += model.batch(requests)
    return answers


def score(rows: list[dict], answers: list[str]) -> dict:
    """Exact match (case and surrounding space aside) over all rows and by kind."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        right = answer.strip().lower() == row["conversations"][1]["value"].strip().lower()
        hits[row.get("kind", "all")].append(right)
    every = [hit for group in hits.values() for hit in group]
    return {
        "all": share(sum(every), len(every)),
        "kinds": {kind: share(sum(group), len(group)) for kind, group in sorted(hits.items())},
    }


def majority_answers(rows: list[dict], train: list[dict]) -> list[str]:
    """The most frequent training answer of each row's kind."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in train:
        counts[row.get("kind", "all")][row["conversations"][1]["value"]] += 1
    return [
        counts[row.get("kind", "all")].most_common(1)[0][0] if counts[row.get("kind", "all")] else "" for row in rows
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m mllm.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="multimodal LLM folder")
    parser.add_argument("--data", type=Path, required=True, help="LLaVA rows with a 'kind' each")
    parser.add_argument("--images", type=Path, required=True, help="folder of the rows' pictures")
    parser.add_argument("--train", type=Path, default=None, help="training rows, for the majority baseline")
    parser.add_argument("--shuffle", action="store_true", help="also answer with the wrong pictures")
    parser.add_argument("--blind", action="store_true", help="ask without pictures a model trained so (blind=true)")
    parser.add_argument("--count", type=int, default=None, help="only the first so many rows")
    parser.add_argument("--out", type=Path, default=None, help="write the report as JSON")
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    model = ChatModel.from_pretrained(args.model, 16, args.device, DTYPES[args.dtype])
    rows = load_rows(args.data)[: args.count]
    if args.blind:
        rows = without_pictures(rows)
    answers = answer_rows(model, rows, args.images)
    report = {"model": score(rows, answers)}
    if args.shuffle:
        report["shuffled_pictures"] = score(rows, answer_rows(model, rows, args.images, shift=len(rows) // 2))
    if args.train is not None:
        report["majority"] = score(rows, majority_answers(rows, load_rows(args.train)))
    text = json.dumps(report, indent=1)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


if __name__ == "__main__":
    run_cli(main)
