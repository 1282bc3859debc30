"""Shows what a training would learn from LLaVA rows, and counts the rows that it could not use.

    python -m mllm.inspect_data data/rows.json --images data/images --model runs/assembled

First some rows as the model reads them, trained tokens in colour (in a pipe: between [[ and ]]); then each problem with
the number of its rows and the first of them. A row is judged by making the very item that mllm.train makes of it, its
pictures read whole. Rows that lose their last exchanges to --max-length are told, but can be trained on.

Ends with an error where more than --max-share of the rows cannot be; mllm.train stops at such a row, or skips it
(`on_error: skip`).
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoProcessor, PreTrainedTokenizerBase

import encoder  # noqa: F401  registers the vision tower with the Auto classes
from mllm.conversation import IGNORED, TEMPLATES, encode_conversation, image_token
from mllm.data import UNUSABLE, Conversations, load_rows
from training.cli import run_cli

COLOUR, MARKS = ("\033[32m", "\033[0m"), ("[[", "]]")


def shown(item: dict, tokenizer: PreTrainedTokenizerBase, marks: tuple[str, str]) -> str:
    """The text of an item with its trained stretches between the marks, and each run of image tokens as one.

    Control characters come out as escapes: a row must not steer the terminal.
    """
    ids, trained = item["input_ids"].tolist(), (item["labels"] != IGNORED).tolist()
    picture = image_token(tokenizer)
    kinds = ["picture" if token == picture else flag for token, flag in zip(ids, trained, strict=True)]
    text, before, start = "", "", 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and kinds[end] == kinds[start]:
            continue
        whole = tokenizer.decode(ids[:end])  # all so far, as a piece alone may lose the space it begins with
        piece = "".join(
            letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in whole[len(before) :]
        )
        if kinds[start] == "picture":
            piece = f"<{end - start} image tokens>"
        text += f"{marks[0]}{piece}{marks[1]}" if kinds[start] is True else piece
        before, start = whole, end
    return text


def is_shortened(dataset: Conversations, index: int, length: int) -> bool:
    """Whether a usable row has more exchanges than its `length` tokens hold."""
    row = dataset.rows[index]
    if len(row["conversations"]) <= 2:
        return False
    whole = encode_conversation(row, dataset.tokenizer, dataset.template, dataset.num_image_tokens)
    return len(whole["input_ids"]) > length


def inspect(dataset: Conversations, tokenizer: PreTrainedTokenizerBase, show: int, marks: tuple[str, str]) -> dict:
    """Makes every item; prints the first `show`, and the totals.

    Returns:
        kind of problem -> the messages of its rows.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    lengths, trained, pictures, shortened = [], 0, 0, 0
    for index in tqdm(range(len(dataset)), desc="rows", mininterval=2):
        try:
            item = dataset.sample(index)
        except UNUSABLE as error:
            problems[error.kind].append(str(error))
            continue
        if len(lengths) < show:
            print(f"--- row {item['key']}, {len(item['images'])} pictures\n{shown(item, tokenizer, marks)}")
        lengths.append(len(item["input_ids"]))
        trained += int((item["labels"] != IGNORED).sum())
        pictures += len(item["images"])
        shortened += is_shortened(dataset, index, lengths[-1])
    print(f"{len(lengths):,} of {len(dataset):,} rows can be trained on, with {pictures:,} pictures")
    if lengths:
        print(
            f"tokens a row: {sum(lengths) / len(lengths):.0f}, at most {max(lengths)}; "
            f"trained: {trained / len(lengths):.1f}; rows that lose their last exchanges: {shortened:,}"
        )
    for kind, messages in sorted(problems.items(), key=lambda pair: -len(pair[1])):
        print(f"{kind}: {len(messages):,} rows; {messages[0]}")
    return dict(problems)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mllm.inspect_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="LLaVA .json or .jsonl file")
    parser.add_argument("--images", type=Path, required=True, help="folder the rows' picture paths are relative to")
    parser.add_argument("--model", type=Path, required=True, help="folder of mllm.assemble or mllm.train")
    parser.add_argument("--template", choices=TEMPLATES, default="chat", help="the recipe's (default: chat)")
    parser.add_argument("--max-length", type=int, default=2048, help="the recipe's (default: 2048)")
    parser.add_argument("--show", type=int, default=3, help="rows to print (default: 3)")
    parser.add_argument("--max-share", type=float, default=0.0, help="of unusable rows, 0 to 1 (default: 0)")
    args = parser.parse_args(argv)
    if not (args.model / "config.json").is_file():
        raise ValueError(f"There is no multimodal LLM at {args.model}; make one with python -m mllm.assemble.")
    config = AutoConfig.from_pretrained(args.model)
    if config.model_type != "llava":  # the pictures of AnyRes have unlike numbers of tokens
        raise ValueError(f"{args.model} holds a {config.model_type}; give a folder assembled without --anyres.")
    tokenizer = AutoProcessor.from_pretrained(args.model).tokenizer
    dataset = Conversations(
        load_rows(args.data),
        tokenizer,
        template=args.template,
        num_image_tokens=config.image_seq_length,
        max_length=args.max_length,
        root=args.images,
        to_pixels=_no_pixels,
    )
    problems = inspect(dataset, tokenizer, args.show, COLOUR if sys.stdout.isatty() else MARKS)
    count = sum(map(len, problems.values()))
    if count > args.max_share * len(dataset):
        raise ValueError(
            f"{count:,} of {len(dataset):,} rows of {args.data} cannot be trained on, more than the share of "
            f"{args.max_share:g}: mend them, or train with on_error: skip."
        )


def _no_pixels(pictures: list) -> Tensor:
    """Stands for the preprocessing of pictures, which never fails once they are read."""
    return torch.zeros(len(pictures), 1)


if __name__ == "__main__":
    run_cli(main)
