"""Trains the family's tokenizer: python -m encoder.train_tokenizer --corpus corpus.txt --out runs/tokenizer"""

import argparse
import io
from pathlib import Path

import sentencepiece

from encoder.tokenizer import build_tokenizer
from training.cli import run_cli


def train_tokenizer(corpus: Path, out: Path, vocab_size: int) -> int:
    """Writes a tokenizer folder (and its sentencepiece model) into `out`; returns the size of its vocabulary.

    Bytes stand in for unknown characters, so every text can be encoded.

    Raises:
        ValueError: there is no corpus, or none that gives a vocabulary of this size.
    """
    if not corpus.is_file():
        raise ValueError(f"There is no corpus at {corpus}; give a text file with one sentence a line.")
    model = io.BytesIO()
    with open(corpus, encoding="utf-8") as lines:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                vocab_size=vocab_size,
                model_type="bpe",
                byte_fallback=True,
                pad_id=0,
                bos_id=1,
                eos_id=2,
                unk_id=3,
                input_sentence_size=200_000,
                shuffle_input_sentence=False,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:  # "INTERNAL: file(line) [condition] reason"
            reason = str(error).rpartition("] ")[2] or "it holds no text."
            raise ValueError(f"--vocab-size {vocab_size} does not fit the corpus {corpus}: {reason}") from error
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = build_tokenizer(out / "tokenizer.model")
    tokenizer.save_pretrained(out)
    return len(tokenizer)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m encoder.train_tokenizer", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--out", type=Path, required=True, help="tokenizer folder to write")
    parser.add_argument("--vocab-size", type=int, default=512, help="at most; 260 of them are bytes and controls")
    args = parser.parse_args(argv)
    print(f"{train_tokenizer(args.corpus, args.out, args.vocab_size)} tokens in {args.out}")


if __name__ == "__main__":
    run_cli(main)
