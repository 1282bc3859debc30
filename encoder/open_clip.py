"""Released checkpoints: open_clip's folder layout, read and written by an explicit table of keys.

A folder holds `open_clip_config.json`, which counts in latents where our config counts in pixels, and the weights,
`open_clip_pytorch_model.bin` as released or safetensors. The table and the rules follow the authors' customised
open_clip (UCSC-VLAA/OpenVision, src/convert_upload/open_clip: VisionTransformer).
"""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from encoder.layers import LAYER_NORM_EPS
from encoder.vae import DOWNSAMPLING

CONFIG_FILE = "open_clip_config.json"
PICKLE_FILE = "open_clip_pytorch_model.bin"
# open_clip's own name first; the others are what exporters make of the .bin's name.
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", PICKLE_FILE)

# vision_cfg keys that name one variant of the architecture: open_clip's default, and what this encoder is.
FIXED = {
    "no_ln_pre": (False, True),
    "pool_type": ("tok", "avg"),
    "ls_init_value": (None, None),
    "patch_dropout": (0.0, 0.0),
    "attentional_pool": (False, False),
    "act_kwargs": (None, None),
    "timm_model_name": (None, None),
}
SIZES = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "in_channels": 3}
# Read without effect: the stored table replaces whatever the position type made, the tokens always come out, the
# authors' code passes its own epsilon of 1e-6 over norm_kwargs, and the rest belongs to parts that are refused above.
WITHOUT_EFFECT = {"pos_embed_type", "output_tokens", "norm_kwargs", "attn_pooler_queries", "attn_pooler_heads"} | {
    f"timm_{name}" for name in ("model_pretrained", "pool", "proj", "proj_bias", "drop", "drop_path")
}
KNOWN = {"image_size", "final_ln_after_pool", *SIZES, *FIXED, *WITHOUT_EFFECT}


def key_table(num_hidden_layers: int) -> dict[str, str]:
    """Our name of every weight -> open_clip's, in the released order."""
    table = {
        "class_embedding": "class_embedding",
        "position_embedding": "positional_embedding",
        "proj": "proj",
        "patch_embedding.weight": "conv1.weight",
    }
    for index in range(num_hidden_layers):
        for ours, theirs in (
            ("norm1.", "ln_1."),
            ("attention.qkv.", "attn.in_proj_"),
            ("attention.out.", "attn.out_proj."),
            ("norm2.", "ln_2."),
            ("fc1.", "mlp.c_fc."),
            ("fc2.", "mlp.c_proj."),
        ):
            for kind in ("weight", "bias"):
                table[f"layers.{index}.{ours}{kind}"] = f"transformer.resblocks.{index}.{theirs}{kind}"
    return table | {"ln_post.weight": "ln_post.weight", "ln_post.bias": "ln_post.bias"}


def shape_of(name: str, config: dict[str, Any]) -> list[int]:
    """Shape of the weight that we call `name`; config as `read` returns it."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    side, patch = config["image_size"] // config["patch_size"], config["patch_size"] // DOWNSAMPLING
    shapes = {
        "position_embedding": [1 + side * side, width],
        "proj": [width, config["projection_dim"]],
        "patch_embedding.weight": [width, config["latent_channels"], patch, patch],
        "attention.qkv.weight": [3 * width, width],
        "attention.qkv.bias": [3 * width],
        "attention.out.weight": [width, width],
        "fc1.weight": [inner, width],
        "fc1.bias": [inner],
        "fc2.weight": [width, inner],
    }
    return shapes.get(name.split(".", 2)[-1] if name.startswith("layers.") else name, [width])


def read(path_or_hub_id: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The keyword arguments of OpenVision3Config, and its model's state dict.

    Raises:
        ValueError: there is no such checkpoint, it is another architecture, or its weights are not exactly the ones
            that its config describes.
    """
    folder = _local_folder(path_or_hub_id)
    config = _our_config(_read_config(folder / CONFIG_FILE), folder / CONFIG_FILE)
    state = _read_weights(folder)
    if state and all(key.startswith("visual.") for key in state):
        state = {key.removeprefix("visual."): value for key, value in state.items()}
    table = key_table(config["num_hidden_layers"])
    for odd, problem in (
        (set(table.values()) - set(state), "lacks"),
        (set(state) - set(table.values()), "holds the unknown"),
    ):
        if odd:
            raise ValueError(
                f"The checkpoint {folder} {problem} weight {sorted(odd)[0]} ({len(odd)} such); "
                f"its {CONFIG_FILE} describes {config['num_hidden_layers']} layers and nothing but the vision tower."
            )
    for ours, theirs in table.items():
        if list(state[theirs].shape) != shape_of(ours, config):
            raise ValueError(
                f"The checkpoint {folder} has weight {theirs} of shape {list(state[theirs].shape)} "
                f"and its {CONFIG_FILE} says {shape_of(ours, config)}."
            )
    return config, {ours: state[theirs] for ours, theirs in table.items()}


def write(folder: str | Path, config: PretrainedConfig, state: dict[str, Tensor]) -> None:
    """Writes a checkpoint in the released layout from an OpenVision3Config and its model's state dict.

    Raises:
        ValueError: the layout has no place for `normalize_tokens`.
    """
    if config.normalize_tokens:
        raise ValueError("open_clip's layout has no LayerNorm at the end of the tokens; set normalize_tokens to false.")
    table = key_table(config.num_hidden_layers)
    assert state.keys() == table.keys(), sorted(state.keys() ^ table.keys())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(_their_config(config), indent=2))
    torch.save(
        {theirs: state[ours].detach().cpu().clone() for ours, theirs in table.items()},
        folder / PICKLE_FILE,
    )


def _local_folder(path_or_hub_id: str | Path) -> Path:
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or len(folder.parts) != 2 or folder.parts[0] in (".", ".."):
        raise ValueError(f"There is no folder {folder}; give one that holds {CONFIG_FILE}, or a hub id (owner/name).")
    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=[CONFIG_FILE, *WEIGHT_FILES]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path_or_hub_id} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}); download it and give its path."
        ) from error


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(
            f"There is no {file.name} in {file.parent}; a released checkpoint holds it beside its weights."
        )
    try:
        config = json.loads(file.read_text())
        model = config.get("model_cfg", config)
        return {"embed_dim": model["embed_dim"], "quick_gelu": model.get("quick_gelu", False), **model["vision_cfg"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not an open_clip config: it needs model_cfg.embed_dim and .vision_cfg.") from error


def _read_weights(folder: Path) -> dict[str, Tensor]:
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"There are no weights in {folder}; it needs one of {', '.join(WEIGHT_FILES)}.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as plain tensors; fetch it again from its publisher.") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds something else than named tensors; give the released file.")
    return state


def _our_config(theirs: dict[str, Any], file: Path) -> dict[str, Any]:
    """The flat vision_cfg (with embed_dim and quick_gelu) -> keyword arguments of OpenVision3Config."""
    embed_dim, quick_gelu = theirs.pop("embed_dim"), theirs.pop("quick_gelu")
    if unknown := sorted(set(theirs) - KNOWN):
        raise ValueError(f"{file} has vision_cfg.{unknown[0]}, which this encoder does not know.")
    if quick_gelu:
        raise ValueError(f"{file} asks for quick_gelu and this encoder has the exact GELU; it is another architecture.")
    for key, (default, ours) in FIXED.items():
        if (theirs.get(key, default) or None) != (ours or None):
            raise ValueError(
                f"{file} has vision_cfg.{key} = {theirs.get(key, default)!r} and this encoder is built with {ours!r}; "
                "it is another architecture."
            )
    sizes = {key: theirs.get(key, default) for key, default in SIZES.items()}
    side = theirs.get("image_size", 224)
    for key, value in {**sizes, "image_size": side, "embed_dim": embed_dim}.items():
        kinds = int | float if key == "mlp_ratio" else int
        if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{file} has {key} = {value!r}; it must be a positive number (grids are square).")
    if sizes["width"] % sizes["head_width"]:
        raise ValueError(
            f"{file} has width {sizes['width']}, which is not a multiple of {sizes['head_width']} (head_width)."
        )
    return {
        "image_size": side * DOWNSAMPLING,
        "patch_size": sizes["patch_size"] * DOWNSAMPLING,
        "latent_channels": sizes["in_channels"],
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["width"] // sizes["head_width"],
        "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
        "projection_dim": embed_dim,
        "final_ln_after_pool": theirs.get("final_ln_after_pool", False),
        "position_table": True,
    }


def _their_config(config: PretrainedConfig) -> dict[str, Any]:
    """OpenVision3Config -> open_clip_config.json, keys in the released order."""
    vision = {
        "image_size": config.image_size // DOWNSAMPLING,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "head_width": config.hidden_size // config.num_attention_heads,
        "patch_size": config.patch_size // DOWNSAMPLING,
        "in_channels": config.latent_channels,
        "no_ln_pre": True,
        "pool_type": "avg",
        "final_ln_after_pool": config.final_ln_after_pool,
        "output_tokens": True,
        "norm_kwargs": {"eps": LAYER_NORM_EPS},
    }
    if config.intermediate_size != 4 * config.hidden_size:
        ratio = config.intermediate_size / config.hidden_size
        # open_clip rounds down, and so do we on reading: 29 / 100 * 100 is 28.999...
        exact = int(config.hidden_size * ratio) == config.intermediate_size
        vision["mlp_ratio"] = ratio if exact else math.nextafter(ratio, math.inf)
    return {"model_cfg": {"embed_dim": config.projection_dim, "vision_cfg": vision}}
