"""Captions pictures with the encoder's own caption decoder: python -m encoder.caption --model DIR A.png B.png

DIR is an autoencoder's folder with text towers, as encoder.train exports it; released encoders have none.
"""

import argparse
from pathlib import Path

from encoder.autoencoder import load_autoencoder
from encoder.commands import add_picture_arguments, read_pixel_values, usable_device
from encoder.tokenizer import load_tokenizer
from training.cli import run_cli


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.caption", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_picture_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="autoencoder folder with text towers")
    args = parser.parse_args(argv)
    device = usable_device(args.device)
    model = load_autoencoder(args.model)
    model.need_text("caption_decoder")
    model.to(device)
    tokenizer = load_tokenizer(args.model / "tokenizer")
    for path in args.pictures:
        pixel_values = read_pixel_values(path, args, model.image_size, model.patch_size).to(device)
        ids = model.caption(model.encode(pixel_values))
        print(f"{path}: {tokenizer.decode(ids[0], skip_special_tokens=True).strip()}")


if __name__ == "__main__":
    run_cli(main)
