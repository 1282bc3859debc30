"""Reads the weights and configuration of RAE's `DiTwDDTHead` (bytetriper/RAE) into our transformer."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from generator.layers import rotary_table
from generator.transformer import DiTDHTransformer2DModel

# RAE's constructor arguments and defaults
RAE_DEFAULTS = {
    "input_size": 1, "patch_size": 1, "in_channels": 768, "hidden_size": [1152, 2048], "depth": [28, 2],
    "num_heads": [16, 16], "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 1000, "use_qknorm": False,
    "use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "wo_shift": False, "use_pos_embed": True,
}  # fmt: skip
STATISTICS_EPS = 1e-5  # RAE normalises by sqrt(var + 1e-5)


def from_rae(folder: str | Path, weights: str = "model.safetensors", **config_overrides) -> DiTDHTransformer2DModel:
    """The transformer of a RAE checkpoint, strictly loaded, in eval mode.

    folder holds the weights and the configuration: `config.json` with RAE's constructor arguments under "model", or
    RAE's YAML with them under stage_2.params. weights: a safetensors file, or RAE's own .pt (its "ema" entry where it
    has one). config_overrides: RAE's argument names. A `stat.pt` in the folder becomes the token statistics.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}: give the folder that holds RAE's weights and configuration."
        )
    options = _check({**RAE_DEFAULTS, **_read_config(folder), **_known(config_overrides, "override")})
    state = _read_weights(folder / weights)
    statistics = folder / "stat.pt"
    model = DiTDHTransformer2DModel(**_our_config(options), statistics_per_position=statistics.is_file())
    model.load_state_dict(_convert(state, model), strict=True)
    if statistics.is_file():
        stored = torch.load(statistics, map_location="cpu", weights_only=True)
        model.set_statistics(stored["mean"], (stored["var"] + STATISTICS_EPS).sqrt())
    return model.eval()


def _known(options: dict, what: str) -> dict:
    if unknown := sorted(set(options) - set(RAE_DEFAULTS)):
        raise ValueError(f"Unknown {what} {', '.join(unknown)}: DiTwDDTHead takes {', '.join(RAE_DEFAULTS)}.")
    return options


def _read_config(folder: Path) -> dict:
    """RAE's constructor arguments from config.json or from the only YAML of the folder."""
    path = folder / "config.json"
    if path.is_file():
        content = json.loads(path.read_text())
        return _known(_entry(content, path, "model"), f"key in {path}:")
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} holds no config.json and {len(found)} YAML files: put RAE's configuration there."
        )
    content = yaml.safe_load(found[0].read_text())
    return _known(_entry(content, found[0], "stage_2", "params"), f"key in {found[0]}:")


def _entry(content: dict, path: Path, *keys: str) -> dict:
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{path} has no {'.'.join(keys)}: the arguments of DiTwDDTHead are expected there.")
        content = content[key]
    return content


def _check(options: dict) -> dict:
    """Refuses what RAE's own code cannot run."""
    patch = options["patch_size"]
    if any(size != 1 for size in (patch if isinstance(patch, (list, tuple)) else [patch])):
        raise ValueError(f"patch_size is {patch}: RAE's tokens are not patched again, only 1 works.")
    if options["wo_shift"]:
        raise ValueError("wo_shift is true: RAE's own code fails on it, so there are no such weights to load.")
    return options


def _our_config(options: dict) -> dict:
    heads = options["num_heads"]
    return {
        "sample_size": options["input_size"],
        "in_channels": options["in_channels"],
        "hidden_size": list(options["hidden_size"]),
        "num_layers": list(options["depth"]),
        "num_attention_heads": [heads, heads] if isinstance(heads, int) else list(heads),
        "mlp_ratio": options["mlp_ratio"],
        "num_classes": options["num_classes"],
        "null_class": options["class_dropout_prob"] > 0,
        "qk_norm": options["use_qknorm"],
        "align_ffn": False,
        "feed_forward": "swiglu" if options["use_swiglu"] else "gelu",
        "norm": "rms" if options["use_rmsnorm"] else "layer",
        "rope": options["use_rope"],
        "absolute_positions": options["use_pos_embed"],
    }


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: name RAE's weights with weights=.")
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("ema", state)


def _convert(state: dict[str, Tensor], model: DiTDHTransformer2DModel) -> dict[str, Tensor]:
    """RAE's keys -> ours: 1x1 convolutions become linear layers; the rotary tables, which we compute, must be ours."""
    converted = {"token_mean": model.token_mean, "token_std": model.token_std}
    for key, value in state.items():
        if "feat_rope" in key:
            part = 0 if key.startswith("enc") else 1
            tables = rotary_table(*model.grid, value.shape[-1])
            if not torch.allclose(value.float(), tables[key.endswith("freqs_sin")], atol=1e-5):
                raise ValueError(f"{key} is not RAE's rotary table for the {model.grid} grid of part {part}.")
        elif key.startswith(("s_embedder.proj.", "x_embedder.proj.")):
            converted[key.replace(".proj.", ".")] = value.flatten(1) if value.ndim == 4 else value
        else:
            converted[key] = value
    return {key: value.float() for key, value in converted.items()}
