"""Sources: readers share the samples out, reading goes on at any place, what is damaged costs no more than itself."""

import csv
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from training.shards import ShardError, write_shards
from training.sources import open_source


def shards(folder, count=10, per_shard=3):
    write_shards(folder, ({"__key__": f"{index:02d}", "txt": b"x" * index} for index in range(count)), per_shard)
    return open_source(folder)


def rows(count=10):
    return [{"file_name": f"{index:02d}.png", "caption": f'a "quoted",\ntext {index}'} for index in range(count)]


def parquet(folder):
    for start in range(0, 10, 3):
        table = pyarrow.Table.from_pylist(rows()[start : start + 3])
        pyarrow.parquet.write_table(table, folder / f"{start}.parquet", row_group_size=2)
    return open_source(folder)


def csv_table(folder):
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "caption"])
        writer.writeheader()
        writer.writerows(rows())
    return open_source(folder)


def jsonl(folder):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return open_source(folder / "metadata.jsonl")


SOURCES = [shards, parquet, csv_table, jsonl]


def keys(samples):
    """What tells the samples apart, whatever the source."""
    return [sample["row"]["file_name"][:2] if "row" in sample else sample["__key__"] for _, sample in samples]


@pytest.mark.parametrize("make", SOURCES[1:])
def test_rows_are_read_as_they_were_written(tmp_path, make):
    samples = [sample for _, sample in make(tmp_path).samples()]
    assert [sample["row"] for sample in samples] == rows()
    assert len({sample["__key__"] for sample in samples}) == 10


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize("readers", [1, 2, 5, 7])
def test_readers_share_all_samples_and_none_twice(tmp_path, make, readers):
    source = make(tmp_path)  # four files of tar and parquet: from five readers on the samples are dealt out in turn
    for shuffled in (False, True):
        parts = [keys(source.samples(reader, readers, rng=np.random.default_rng(3) if shuffled else None))
                 for reader in range(readers)]  # fmt: skip
        assert all(parts)
        assert sorted(sum(parts, [])) == [f"{index:02d}" for index in range(10)]


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize("reader, readers", [(0, 1), (1, 2), (4, 6)])
def test_reading_goes_on_at_any_place(tmp_path, make, reader, readers):
    source = make(tmp_path)
    whole = list(source.samples(reader, readers))
    for number, (place, _) in enumerate(whole):
        place = json.loads(json.dumps(place))
        assert list(source.samples(reader, readers, place)) == whole[number + 1 :]


def test_a_data_set_of_the_hub(tmp_path):
    """A local folder stands in for one: `datasets` reads both alike."""
    parquet(tmp_path)
    source = open_source(f"hf://{tmp_path}")
    whole = [list(source.samples(reader, 2)) for reader in range(2)]
    assert sorted(sum(map(keys, whole), [])) == [f"{index:02d}" for index in range(10)]
    place = json.loads(json.dumps(whole[1][1][0]))
    assert [sample for _, sample in source.samples(1, 2, place)] == [sample for _, sample in whole[1][2:]]


def test_the_order_of_files_is_shuffled_alike_for_all_readers(tmp_path):
    source = shards(tmp_path)
    orders = {tuple(keys(source.samples(rng=np.random.default_rng(seed)))) for seed in range(8)}
    assert len(orders) > 3
    assert all([key for key in order if key < "03"] == ["00", "01", "02"] for order in orders)


@pytest.mark.parametrize("readers", [1, 2, 9])
def test_a_damaged_file_gives_one_error_and_the_next_file_follows(tmp_path, readers):
    source = shards(tmp_path)
    path = tmp_path / "00001.tar"
    path.write_bytes(path.read_bytes()[:1200])  # the second sample's data is cut
    found = [sample for reader in range(readers) for _, sample in source.samples(reader, readers)]
    errors = [row for row in found if isinstance(row, ShardError)]
    assert len(errors) == 1 and "00001.tar" in str(errors[0])
    read = sorted(row["__key__"] for row in found if isinstance(row, dict))
    assert read == ["00", "01", "02", "03", "06", "07", "08", "09"]


def test_the_fingerprint_follows_names_and_sizes(tmp_path):
    first = shards(tmp_path / "a").fingerprint()
    assert shards(tmp_path / "b").fingerprint() == first
    assert shards(tmp_path / "c", count=9).fingerprint() != first


def test_nothing_to_read_is_named(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ShardError, match=f"no data at {path}: name a folder with .tar, .parquet"):
            open_source(path)


def test_a_row_that_cannot_be_read_costs_no_other(tmp_path):
    source = jsonl(tmp_path)
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "metadata.jsonl").write_text("\n".join([*lines[:2], "{", "[1]", *lines[4:]]))
    samples = [sample for _, sample in source.samples()]
    assert [index for index, sample in enumerate(samples) if isinstance(sample, ShardError)] == [2, 3]
    assert "metadata.jsonl: row 3 cannot be read" in str(samples[2])
    assert [sample["row"] for sample in samples[4:]] == rows()[4:]


@pytest.mark.parametrize("make, name", [(parquet, "3.parquet"), (csv_table, "metadata.csv")])
def test_a_table_that_cannot_be_read_on_is_named(tmp_path, make, name):
    source = make(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] + b"\xff\xff")
    errors = [sample for _, sample in source.samples() if isinstance(sample, ShardError)]
    assert len(errors) == 1 and f"{name} " in str(errors[0]) and "again" in str(errors[0])
