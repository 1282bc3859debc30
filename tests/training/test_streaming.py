"""Streams of a training: everything once an epoch, in another order, and exactly the same after an interruption."""

from itertools import islice

import pytest
from torch.utils.data import DataLoader

from training.shards import ShardError, write_shards
from training.sources import open_source
from training.streaming import ShuffledStream


def item(sample, epoch):
    return None if sample["__key__"] == "03" else {"key": sample["__key__"], "epoch": epoch}


@pytest.fixture
def source(tmp_path):
    """22 samples in four files; item() cannot use one of them."""
    write_shards(tmp_path, ({"__key__": f"{index:02d}", "txt": b"x"} for index in range(22)), per_shard=6)
    return open_source(tmp_path)


def stream(source, buffer_size=5, seed=0):
    return ShuffledStream(source, item, seed, buffer_size)


def batches(dataset, count, workers, size=2):
    loader = DataLoader(dataset, batch_size=size, num_workers=workers, collate_fn=list)
    return list(islice(loader, count))


def test_every_sample_comes_once_an_epoch_in_another_order(source):
    items = list(islice(stream(source), 63))
    epochs = [[row["key"] for row in items if row["epoch"] == epoch] for epoch in range(3)]
    usable = [f"{index:02d}" for index in range(22) if index != 3]
    assert all(sorted(keys) == usable for keys in epochs) and len({tuple(keys) for keys in epochs}) == 3
    assert epochs[0] != usable
    again = [row["key"] for row in islice(stream(source), 63)]
    other = [row["key"] for row in islice(stream(source, seed=1), 63)]
    assert again == [row["key"] for row in items] != other


def test_processes_and_workers_share_an_epoch(source):
    keys = []
    for process in range(2):
        part = stream(source)
        part.process, part.processes = process, 2
        for batch in batches(part, 30, workers=2):
            keys += [row["key"] for row in batch if row["epoch"] == 0]
    assert sorted(keys) == [f"{index:02d}" for index in range(22) if index != 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was_interrupted(source, workers):
    whole = batches(stream(source), 24, workers)
    for count in (1, 2, 7):
        after = stream(source)
        after.progress = dict(row["progress"] for batch in whole[:count] for row in batch)
        after.first_worker = count % max(1, workers)
        assert batches(after, 24 - count, workers) == whole[count:]


def test_nothing_to_train_on_is_named(source):
    with pytest.raises(ShardError, match="Reader 0 of 1 finds nothing"):
        next(iter(ShuffledStream(source, lambda sample, epoch: None, 0, 5)))
