"""Shards: what is written is read, the same samples give the same bytes, damage is named."""

import tarfile

import pytest

from training.shards import ShardError, read_tar, sample_rng, write_shards


def _samples(count):
    return [
        {"__key__": f"{index:04d}", "txt": f"text {index}".encode(), "png": bytes([index]) * index}
        for index in range(count)
    ]


def test_written_samples_are_read_back_in_order_across_shards(tmp_path):
    assert write_shards(tmp_path, _samples(7), per_shard=3) == 7
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [sample for path in paths for _, sample in read_tar(path)] == _samples(7)


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shards(tmp_path / name, _samples(4))
    assert (tmp_path / "a/00000.tar").read_bytes() == (tmp_path / "b/00000.tar").read_bytes()


def test_reading_goes_on_behind_any_sample(tmp_path):
    write_shards(tmp_path, _samples(5))
    places = [0, *(place for place, _ in read_tar(tmp_path / "00000.tar"))]
    for number, place in enumerate(places):
        assert [sample for _, sample in read_tar(tmp_path / "00000.tar", place)] == _samples(5)[number:]


def test_webdataset_reads_our_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_shards(tmp_path, _samples(3))
    read = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    assert [(row["__key__"], row["txt"]) for row in read] == [(row["__key__"], row["txt"]) for row in _samples(3)]


def test_members_in_folders_keep_their_folder_in_the_key(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "x.txt", "part/x.txt")
    assert [sample for _, sample in read_tar(tmp_path / "0.tar")] == [{"__key__": "part/x", "txt": b"hello"}]


def test_a_truncated_shard_is_named(tmp_path):
    write_shards(tmp_path, [{"__key__": "a", "txt": b"x" * 5000}])
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:2000])
    with pytest.raises(ShardError, match="00000.tar.*(truncated|readable).*again"):
        list(read_tar(tmp_path / "00000.tar"))


@pytest.mark.parametrize("damage", ["header", "zeroed", "boundary", "one block", "second archive"])
def test_a_shard_that_would_lose_samples_in_silence_is_refused(tmp_path, damage):
    write_shards(tmp_path, _samples(10))
    path = tmp_path / "00000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    fourth, end = members[8].offset, members[-1].offset_data + 512
    parts = {
        "header": whole[: fourth + 3] + b"\xff" + whole[fourth + 4 :],
        "zeroed": whole[:fourth] + bytes(1024) + whole[fourth + 1024 :],
        "boundary": whole[:fourth],
        "one block": whole[: end + 512],
        "second archive": whole + whole,
    }
    path.write_bytes(parts[damage])
    with pytest.raises(ShardError, match="00000.tar is (truncated|damaged).*again"):
        list(read_tar(path))
    path.write_bytes(whole[: end + 1024])  # the end itself needs no padding
    assert len(list(read_tar(path))) == 10


def test_random_choices_depend_on_seed_epoch_and_index_alone():
    draws = {triple: sample_rng(*triple).integers(1 << 40) for triple in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(set(draws.values())) == 4
    assert sample_rng(0, 1, 0).integers(1 << 40) == draws[0, 1, 0]
