"""Sources: readers share the samples out, reading goes on at any place, what is damaged costs no more than itself."""

import numpy as np
import pytest

from training.shards import ShardError, write_shards
from training.sources import open_source


def shards(folder, count=10, per_shard=3):
    write_shards(folder, ({"__key__": f"{index:02d}", "txt": b"x" * index} for index in range(count)), per_shard)
    return open_source(folder)


def keys(samples):
    return [sample["__key__"] for _, sample in samples]


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 5, 7])
def test_readers_share_all_samples_and_none_twice(tmp_path, readers):
    source = shards(tmp_path)  # four files, so that from five readers on the samples are dealt out in turn
    for shuffled in (False, True):
        parts = [keys(source.samples(reader, readers, rng=np.random.default_rng(3) if shuffled else None))
                 for reader in range(readers)]  # fmt: skip
        assert all(parts)
        assert sorted(sum(parts, [])) == [f"{index:02d}" for index in range(10)]


@pytest.mark.parametrize("reader, readers", [(0, 1), (1, 2), (0, 3), (4, 6)])
def test_reading_goes_on_at_any_place(tmp_path, reader, readers):
    source = shards(tmp_path)
    whole = list(source.samples(reader, readers))
    for number, (place, _) in enumerate(whole):
        assert list(source.samples(reader, readers, place)) == whole[number + 1 :]


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
    rows = [sample for reader in range(readers) for _, sample in source.samples(reader, readers)]
    errors = [row for row in rows if isinstance(row, ShardError)]
    assert len(errors) == 1 and "00001.tar" in str(errors[0])
    read = sorted(row["__key__"] for row in rows if isinstance(row, dict))
    assert read == ["00", "01", "02", "03", "06", "07", "08", "09"]


def test_the_fingerprint_follows_names_and_sizes(tmp_path):
    first = shards(tmp_path / "a").fingerprint()
    assert shards(tmp_path / "b").fingerprint() == first
    assert shards(tmp_path / "c", count=9).fingerprint() != first


def test_nothing_to_read_is_named(tmp_path):
    with pytest.raises(ShardError, match="no .tar shards at .*none"):
        open_source(tmp_path / "none")
    with pytest.raises(ShardError, match="no .tar shards at"):
        open_source(tmp_path)
