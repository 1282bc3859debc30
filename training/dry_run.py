"""What a training would do, without doing it."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments


def dry_run(
    objective: nn.Module, dataset: Dataset, arguments: TrainingArguments, collate: Callable[[list[Any]], dict[str, Any]]
) -> str:
    """Trainable parameters, the first batch's shapes and an estimate from one measured step, as text."""
    batch = collate([dataset[index] for index in range(min(arguments.per_device_train_batch_size, len(dataset)))])
    keys = batch.pop("keys", [])
    learning = sum(value.numel() for value in objective.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in objective.parameters() if not value.requires_grad)
    start = time.perf_counter()
    objective(**batch)["loss"].backward()
    seconds = time.perf_counter() - start
    lines = [f"parameters: {learning:,} learn, {frozen:,} frozen", f"samples: {len(dataset):,}, first {keys[:4]}"]
    lines += [
        f"batch {name}: {list(value.shape)} {value.dtype}" for name, value in batch.items() if isinstance(value, Tensor)
    ]
    lines.append(f"one forward and backward on the CPU: {seconds:.2f} s")
    if arguments.max_steps > 0:
        lines.append(f"estimate for {arguments.max_steps} steps: {seconds * arguments.max_steps / 60:.1f} minutes")
    return "\n".join(lines)
