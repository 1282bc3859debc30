"""What a training would do, without doing it."""

import math
import resource
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainingArguments

PICTURE_FILE, MOST_PICTURES = "dry_run.png", 64


def dry_run(
    objective: nn.Module, dataset: Dataset, arguments: TrainingArguments, collate: Callable[[list[Any]], dict[str, Any]]
) -> str:
    """Trainable parameters, the first batch's shapes, memory and an estimate from one measured step, as text.

    The batch's pictures, where it holds any, are written into output_dir.
    """
    device = arguments.device
    stream = isinstance(dataset, IterableDataset)
    items = iter(dataset) if stream else (dataset[index] for index in range(len(dataset)))
    batch = collate(list(islice(items, arguments.per_device_train_batch_size)))
    keys, count = batch.pop("keys", []), "a stream" if stream else f"{len(dataset):,}"
    learning = sum(value.numel() for value in objective.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in objective.parameters() if not value.requires_grad)
    objective.to(device)
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    start = time.perf_counter()
    objective(**batch)["loss"].backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    seconds = time.perf_counter() - start
    lines = [f"parameters: {learning:,} learn, {frozen:,} frozen", f"samples: {count}, first {keys[:4]}"]
    lines += [
        f"batch {name}: {list(value.shape)} {value.dtype}" for name, value in batch.items() if isinstance(value, Tensor)
    ]
    pictures = batch_pictures(batch)
    if pictures is not None:
        pictures.save(Path(arguments.output_dir) / PICTURE_FILE)
        lines.append(f"its pictures: {Path(arguments.output_dir) / PICTURE_FILE}")
    lines.append(f"one forward and backward on {device}: {seconds:.2f} s, peak memory {peak / 2**30:.2f} GiB")
    if arguments.max_steps > 0:
        minutes = seconds * arguments.max_steps * arguments.gradient_accumulation_steps / 60
        lines.append(f"estimate for {arguments.max_steps} steps: {minutes:.1f} minutes")
    return "\n".join(lines)


def batch_pictures(batch: dict[str, Any]) -> Image.Image | None:
    """The first pictures of a batch in a square: of `pixels` (uint8) or `pixel_values` ([-1, 1]), or None without."""
    if "pixels" in batch:
        levels = batch["pixels"][:MOST_PICTURES]
    elif "pixel_values" in batch:
        levels = ((batch["pixel_values"][:MOST_PICTURES].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    else:
        return None
    count, _, height, width = levels.shape
    columns = math.ceil(math.sqrt(count))
    whole = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for index, array in enumerate(levels.permute(0, 2, 3, 1).cpu().numpy()):
        whole.paste(Image.fromarray(array), (index % columns * width, index // columns * height))
    return whole
