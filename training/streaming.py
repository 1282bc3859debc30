"""Training straight from a source: shuffled within a buffer, shared by processes and workers, resumed exactly."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import TrainingArguments

from training.shards import ShardError
from training.sources import Files, Hub

PROGRESS_FILE = "stream-{}.json"  # of each process, in a checkpoint


class ShuffledStream(IterableDataset):
    """The samples of a source, epoch after epoch without end, as items of a training.

    The files come in another order every epoch; their samples are read `buffer_size` at a time and shuffled among
    these. What comes is a function of (seed, epoch, process, worker), so that a stream goes on exactly from `progress`.

    Args:
        source: what to read.
        item: (sample, epoch) -> item, a dictionary; or None, if the sample cannot be used.
        buffer_size: samples that a worker holds, not decoded.

    Attributes:
        process, processes: which of how many this is; the Trainer sets them.
        progress: by reader (a worker of a process), where to go on and how many samples were left out so far; every
            item's "progress" is (reader, the same behind it).
        first_worker: whose turn it is when reading goes on.

    Raises:
        ShardError: a reader finds no sample that can be used in a whole epoch.
    """

    def __init__(
        self, source: Files | Hub, item: Callable[[dict | ShardError, int], dict | None], seed: int, buffer_size: int
    ) -> None:
        self.source, self.item, self.seed, self.buffer_size = source, item, seed, buffer_size
        self.process, self.processes = 0, 1
        self.workers, self.first_worker, self.batches = 1, 0, 0
        self.progress: dict[int, dict[str, Any]] = {}

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        # The loader begins with its worker 0, which takes the part of the one whose turn it was.
        reader = self.process * workers + (number + self.first_worker) % workers
        start = {"epoch": 0, "block": 0, "used": 0, "skipped": 0, "place": None}
        epoch, block, used, skipped, place = self.progress.get(reader, start).values()
        while True:
            found = used > 0 or block > 0
            order = np.random.default_rng((self.seed, epoch))
            samples = self.source.samples(reader, self.processes * workers, place, order)
            while rows := list(islice(samples, self.buffer_size)):
                numbers = np.random.default_rng((self.seed, epoch, reader, block)).permutation(len(rows))
                for index in numbers[used:]:
                    used += 1
                    item = self.item(rows[index][1], epoch)
                    if item is None:
                        skipped += 1
                        continue
                    found, values = True, (epoch, block, used, skipped, place)
                    yield {**item, "progress": (reader, dict(zip(start, values, strict=True)))}
                place, block, used = rows[-1][0], block + 1, 0
            if not found:
                raise ShardError(f"Reader {reader} of {self.processes * workers} finds nothing to train on.")
            epoch, block, used, place = epoch + 1, 0, 0, None

    def share(self, arguments: TrainingArguments) -> None:
        """Reads this process's part from now on, with as many workers as the loader will have.

        Raises:
            ValueError: max_steps is not set: a stream has no end of its own.
        """
        if arguments.max_steps <= 0:
            raise ValueError("A stream has no end: set trainer.max_steps.")
        arguments.ignore_data_skip = True  # the stream goes on by itself
        self.process, self.processes = arguments.process_index, arguments.world_size
        self.workers = max(1, arguments.dataloader_num_workers)

    def advance(self, progress: dict[int, dict[str, Any]]) -> None:
        """Notes that the training has consumed a batch: what workers read ahead does not count."""
        self.progress.update(progress)
        self.batches += 1

    @property
    def skipped(self) -> int:
        """Samples of this process that could not be used, in all epochs together."""
        return sum(state["skipped"] for state in self.progress.values())

    def save(self, folder: Path) -> None:
        """Notes in a checkpoint how far this process has come."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {"batches": self.batches, "workers": self.workers, "source": self.source.fingerprint()}
        text = json.dumps({**state, "progress": list(self.progress.items())})
        (folder / PROGRESS_FILE.format(self.process)).write_text(text)

    def load(self, folder: Path) -> None:
        """Goes on from there.

        Raises:
            ValueError: another number of workers or other files would bring other batches.
        """
        state = json.loads((folder / PROGRESS_FILE.format(self.process)).read_text())
        for name, now in (("workers", self.workers), ("source", self.source.fingerprint())):
            if state[name] != now:
                raise ValueError(
                    f"{folder} was written with {name} {state[name]} and this run has {now}, so that it would see "
                    "other batches: restore it, or choose another output_dir."
                )
        self.batches, self.progress = state["batches"], dict(state["progress"])
        self.first_worker = self.batches % self.workers


def stream_loader(stream: ShuffledStream, arguments: TrainingArguments, collate: Callable[[list], dict]) -> DataLoader:
    """Batches of this process's part; each holds under "progress" what `ShuffledStream.advance` takes."""

    def collate_stream(items: list[dict]) -> dict:
        return {**collate(items), "progress": dict(item["progress"] for item in items)}

    return DataLoader(
        stream,
        batch_size=arguments.per_device_train_batch_size,
        num_workers=arguments.dataloader_num_workers,
        collate_fn=collate_stream,
        pin_memory=arguments.dataloader_pin_memory,
        generator=torch.Generator(),  # the global one must not move when a loader is made anew
    )
