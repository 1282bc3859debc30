"""Chats in the terminal: python -m mllm.chat --model runs/mllm --image picture.png

An empty line ends the conversation; `/image PATH` shows another picture and begins a new one.
"""

import argparse
from pathlib import Path

from encoder.images import load_image
from mllm.chat_model import DTYPES, ChatModel, add_device_arguments
from training.cli import run_cli


def typed() -> str:
    """What the visitor types; nothing where the input ends."""
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mllm.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="multimodal LLM folder")
    parser.add_argument("--image", type=Path, default=None, help="picture to talk about")
    parser.add_argument("--question", default=None, help="ask this, print the answer and stop")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: 128)")
    parser.add_argument(
        "--temperature", type=float, default=None, help="0: likeliest words; above: drawn (default: as the LLM says)"
    )
    parser.add_argument("--top-p", type=float, default=None, help="draw from the likeliest words of this probability")
    parser.add_argument("--seed", type=int, default=None, help="of the drawing; the same seed, the same answers")
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    images = [load_image(args.image)] if args.image is not None else []
    model = ChatModel.from_pretrained(args.model, args.max_new_tokens, args.device, DTYPES[args.dtype])
    options = {"temperature": args.temperature, "top_p": args.top_p, "seed": args.seed}
    if args.question is not None:
        print(model.chat([{"role": "user", "content": args.question}], images, **options))
        return
    messages: list[dict[str, str]] = []
    while question := typed():
        if question.startswith("/image "):
            images, messages = [load_image(question.removeprefix("/image ").strip())], []
            continue
        messages.append({"role": "user", "content": question})
        print("model: ", end="", flush=True)
        answer = ""
        for piece in model.stream(messages, images, **options):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    run_cli(main)
