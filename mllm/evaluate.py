"""Scores a multimodal LLM on questions about pictures, answered greedily.

    python -m mllm.evaluate --model runs/mllm --data q.json --images images        # own rows, exact match by kind
    python -m mllm.evaluate --model runs/mllm --benchmark pope --data coco_pope_*.json --images val2014

Own rows: beside the score the majority answer of each kind in `--train` rows, and (`--shuffle`) the model shown the
wrong pictures. `--benchmark` reads the files that a benchmark publishes and scores as its authors do (mllm.scorers).
Every report names the weights, the prompt and the versions that it depends on.
"""

import argparse
import hashlib
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from encoder.lineage import weights_hash
from mllm import benchmarks
from mllm.chat_model import DTYPES, ChatModel, add_device_arguments
from mllm.conversation import ROLES, images_of
from mllm.data import load_picture, load_rows, without_pictures
from training.cli import print_report, run_cli
from training.statistics import share

BATCH = 64


def answer_rows(model: ChatModel, rows: list[dict], root: Path, shift: int = 0) -> list[str]:
    """The model's answers to the first question of each row; with `shift`, shown the picture of another row."""
    items = []
    for index, row in enumerate(rows):
        other = rows[(index + shift) % len(rows)]
        items.append((row.get("id"), row["conversations"][0]["value"], images_of(other)))
    return answer(model, items, root)


def answer(model: ChatModel, items: list[tuple[object, str, list[str]]], root: Path) -> list[str]:
    """The model's answers to (id, question, pictures inside `root`)."""
    answers: list[str] = []
    for start in tqdm(range(0, len(items), BATCH), desc="questions", mininterval=2):
        requests = [
            ([{"role": "user", "content": text}], [load_picture(name, root, row_id) for name in names])
            for row_id, text, names in items[start : start + BATCH]
        ]
        answers += model.batch(requests)
    return answers


def provenance(folder: Path, model: ChatModel) -> dict:
    """What a score depends on beside the questions: weights, prompt, precision, versions. Greedy: there is no seed."""
    probe = model.tokenizer.decode(model._inputs([([{"role": "user", "content": "?"}], [])])["input_ids"][0])
    return {
        "weights": weights_hash(folder),
        "template": model.template,
        "prompt": hashlib.sha256(probe.encode()).hexdigest()[:16],
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "batch": BATCH,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


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


def own_rows(model: ChatModel, args: argparse.Namespace) -> dict:
    """The report on LLaVA rows: the model's score, and the baselines that were asked for.

    Raises:
        ValueError: a row has no answer to compare with.
    """
    rows = [row for path in args.data for row in load_rows(path)][: args.count]
    for row in rows:
        if [ROLES.get(turn.get("from")) for turn in row["conversations"][:2]] != ["user", "assistant"]:
            raise ValueError(f"Row {row.get('id')} does not begin with a question and its answer; leave it out.")
    if args.blind:
        rows = without_pictures(rows)
    report = {"model": score(rows, answer_rows(model, rows, args.images))}
    if args.shuffle:
        report["shuffled_pictures"] = score(rows, answer_rows(model, rows, args.images, shift=len(rows) // 2))
    if args.train is not None:
        report["majority"] = score(rows, majority_answers(rows, load_rows(args.train)))
    return report


def benchmark(model: ChatModel, args: argparse.Namespace) -> dict:
    """The report on a public benchmark: its score and every answer."""
    items = benchmarks.read(args.benchmark, args.data)[: args.count]
    answers = answer(model, [(item.id, item.prompt, [item.image] if item.image else []) for item in items], args.images)
    kept = {item.id: text for item, text in zip(items, answers, strict=True)}
    return {args.benchmark: benchmarks.SCORE[args.benchmark](items, answers), "questions": len(items), "answers": kept}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mllm.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="multimodal LLM folder")
    parser.add_argument("--benchmark", choices=benchmarks.READ, default=None, help="a public benchmark, not own rows")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="LLaVA rows with a 'kind' each, or the "
                        "benchmark's files (mme: its folder, also as --images)")  # fmt: skip
    parser.add_argument("--images", type=Path, required=True, help="folder of the rows' pictures")
    parser.add_argument("--train", type=Path, default=None, help="training rows, for the majority baseline")
    parser.add_argument("--shuffle", action="store_true", help="also answer with the wrong pictures")
    parser.add_argument("--blind", action="store_true", help="ask without pictures a model trained so (blind=true)")
    parser.add_argument("--count", type=int, default=None, help="only the first so many rows")
    parser.add_argument("--out", type=Path, default=None, help="write the report as JSON")
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    if args.benchmark is not None and (args.train is not None or args.shuffle or args.blind):
        raise ValueError("--train, --shuffle and --blind belong to own rows; leave them out of a --benchmark.")
    model = ChatModel.from_pretrained(args.model, 16, args.device, DTYPES[args.dtype])
    if args.benchmark is not None:
        report = benchmark(model, args)
    else:
        report = own_rows(model, args)
    report["provenance"] = provenance(args.model, model)
    print_report(report, args.out)


if __name__ == "__main__":
    run_cli(main)
