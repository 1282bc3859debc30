"""Merges a LoRA training into an ordinary folder.

    python -m mllm.merge --model runs/lora --out runs/merged

--model is the output folder of a `mllm.train` recipe with `lora`; the folder that training started from must still be
where it was. The result is what a full training writes: mllm.train and ChatModel read it. An adapter that was trained
over an LLM in four bits is merged into the LLM's own weights.
"""

import argparse
import json
from pathlib import Path

from peft import PeftModel
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration
from transformers.utils import ADAPTER_CONFIG_NAME

import encoder  # noqa: F401  registers the vision tower with the Auto classes
from encoder.lineage import read_parents, weights_hash, write_parents


def merge(folder: Path, out: Path) -> LlavaForConditionalGeneration:
    """Builds and saves the folder; returns the model, which is in the dtype of the folder that was adapted.

    Raises:
        ValueError: there is no adapter in `folder`, or the weights it was trained on are not there any more.
    """
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(
            f"There is no adapter in {folder} (no {ADAPTER_CONFIG_NAME}); name the output_dir of a recipe with lora."
        )
    base = Path(json.loads((folder / ADAPTER_CONFIG_NAME).read_text())["base_model_name_or_path"])
    if not (base / "config.json").is_file():
        raise ValueError(f"{folder} adapts {base}, and there is no model there; bring that folder back.")
    parents = read_parents(folder)
    if weights_hash(base) != parents.get("init_from"):
        raise ValueError(f"{folder} adapts other weights than those in {base} now; bring the old ones back.")
    model = LlavaForConditionalGeneration.from_pretrained(base)
    dtype = model.dtype
    model.config.conversation_template = AutoConfig.from_pretrained(folder).conversation_template
    model.model.language_model.float()  # the update is added in float32 and rounded once
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    for value in merged.parameters():
        value.data = value.data.to(dtype)
    merged.save_pretrained(out)
    AutoProcessor.from_pretrained(folder).save_pretrained(out)
    write_parents(out, parents)
    print(f"{folder} merged into {base} -> {out}")
    return merged


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mllm.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="output folder of a training with lora")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    merge(args.model, args.out)


if __name__ == "__main__":
    from training.cli import run_cli  # here, as in mllm.assemble: merging needs no training

    run_cli(main)
