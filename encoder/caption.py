"""Captions pictures with the encoder's own caption decoder: python -m encoder.caption --model DIR A.png B.png"""

import argparse
from pathlib import Path

from encoder.autoencoder import load_autoencoder
from encoder.images import load_image, to_pixel_values
from encoder.tokenizer import load_tokenizer
from training.cli import run_cli


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m encoder.caption", description=__doc__)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True, help="autoencoder folder with text towers")
    args = parser.parse_args(argv)
    model, tokenizer = load_autoencoder(args.model), load_tokenizer(args.model / "tokenizer")
    for path in args.pictures:
        ids = model.caption(model.encode(to_pixel_values([load_image(path)], model.image_size)))
        print(f"{path}: {tokenizer.decode(ids[0], skip_special_tokens=True).strip()}")


if __name__ == "__main__":
    run_cli(main)
