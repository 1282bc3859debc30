"""What a training would do, without doing it."""

import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments


def dry_run(
    objective: nn.Module, dataset: Dataset, arguments: TrainingArguments, collate: Callable[[list[Any]], dict[str, Any]]
) -> str:
    """Trainable parameters, the first batch's shapes, memory and an estimate from one measured step, as text."""
    device = arguments.device
    batch = collate([dataset[index] for index in range(min(arguments.per_device_train_batch_size, len(dataset)))])
    keys = batch.pop("keys", [])
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
    lines = [f"parameters: {learning:,} learn, {frozen:,} frozen", f"samples: {len(dataset):,}, first {keys[:4]}"]
    lines += [
        f"batch {name}: {list(value.shape)} {value.dtype}" for name, value in batch.items() if isinstance(value, Tensor)
    ]
    lines.append(f"one forward and backward on {device}: {seconds:.2f} s, peak memory {peak / 2**30:.2f} GiB")
    if arguments.max_steps > 0:
        minutes = seconds * arguments.max_steps * arguments.gradient_accumulation_steps / 60
        lines.append(f"estimate for {arguments.max_steps} steps: {minutes:.1f} minutes")
    return "\n".join(lines)
