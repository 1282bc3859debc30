"""Where samples come from: files read one after another, dealt among readers, taken up again at any place.

A sample is `{"__key__": str, "png": bytes, "json": bytes, ...}` from a tar file, and `{"__key__": str, "row": {column:
value}}` from a table; `"__url__"`, as in webdataset, says which file it is from.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from training.shards import ShardError, read_tar

HUB = "hf://"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET_ROWS = 64  # decoded at a time

# Where to go on, as JSON can hold it. Of files: number of the file, place inside it in the file's own measure, samples
# read so far.
Place = list[Any]
Reader = Callable[[Path, int], Iterator[tuple[int, dict[str, Any] | ShardError]]]


@dataclass(frozen=True)
class Files:
    """The samples of many files as one stream, without a look at them first.

    Args:
        paths: the files, of kinds in READERS.
    """

    paths: tuple[Path, ...]

    def samples(
        self, reader: int = 0, readers: int = 1, place: Place | None = None, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[Place, dict[str, Any] | ShardError]]:
        """The samples of one of several readers, each with the place to give to go on behind it.

        Every reader has its own files; where there are fewer files than readers, all read all files and deal the
        samples out in turn. A file that cannot be read on gives one ShardError, and the next file follows. `rng`
        shuffles the order of the files: the same for all readers.
        """
        order = np.arange(len(self.paths)) if rng is None else rng.permutation(len(self.paths))
        by_file = len(order) >= readers
        first, inside, before = place or (0, 0, 0)
        for number in range(first, len(order)):
            if by_file and number % readers != reader:
                continue
            if number != first:
                inside = 0
            path = self.paths[order[number]]
            try:
                for behind, sample in READERS[path.suffix](path, inside):
                    before += 1
                    if by_file or (before - 1) % readers == reader:
                        if isinstance(sample, dict):
                            sample["__url__"] = str(path)
                        yield [number, behind, before], sample
            except ShardError as error:
                if by_file or reader == 0:
                    yield [number + 1, 0, before], error

    def fingerprint(self) -> str:
        """Changes with the names and sizes of the files, which places refer to."""
        names = [f"{path.name} {path.stat().st_size}" for path in self.paths]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub, streamed by `datasets`; a local folder's path does for a name too.

    Reading goes on at any place as `datasets` can: not bit for bit where the files on the hub have changed since.
    """

    name: str

    def samples(
        self, reader: int = 0, readers: int = 1, place: Place | None = None, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[Place, dict[str, Any]]]:
        """As `Files.samples`."""
        import datasets
        from datasets.distributed import split_dataset_by_node

        rows = datasets.load_dataset(self.name, split="train", streaming=True)
        for column, feature in (rows.features or {}).items():
            if isinstance(feature, datasets.Image):  # the bytes: size and kind are checked before they are decoded
                rows = rows.cast_column(column, datasets.Image(decode=False))
        if rng is not None:
            rows = rows.shuffle(seed=int(rng.integers(1 << 31)), buffer_size=1)  # the order of the files alone
        rows = split_dataset_by_node(rows, rank=reader, world_size=readers)
        number, state = place or (0, None)
        if state is not None:
            rows.load_state_dict(state)
        for row in rows:
            number += 1
            sample = {"__key__": f"{reader}-{number}", "__url__": f"{HUB}{self.name}", "row": row}
            yield [number, rows.state_dict()], sample

    def fingerprint(self) -> str:
        """The name; whether the files are still the same is for the hub to say."""
        return self.name


def read_parquet(path: Path, place: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a parquet file from row `place` on, as `{"__key__": "FILE:ROW", "row": {column: value}}`.

    Raises:
        ShardError: it cannot be read on.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            behind = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if behind + size <= place:
                    behind += size
                    continue
                for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        behind += 1
                        if behind > place:
                            yield behind, {"__key__": f"{path.name}:{behind}", "row": row}
    except (pyarrow.ArrowException, OSError) as error:
        raise ShardError(f"{path} is not a readable parquet file ({error}); copy or prepare it again.") from error


def read_table(path: Path, place: int = 0) -> Iterator[tuple[int, dict[str, Any] | ShardError]]:
    """The rows of a .csv, .tsv (with a line of names) or .jsonl file from row `place` on; see `read_parquet`.

    Raises:
        ShardError: it cannot be read on. (A line of .jsonl that cannot be read comes as a ShardError itself.)
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = file if path.suffix == ".jsonl" else csv.DictReader(file, delimiter=DELIMITERS[path.suffix])
            for behind, line in enumerate(islice(lines, place, None), start=place + 1):
                try:
                    row = json.loads(line) if isinstance(line, str) else line
                    if not isinstance(row, dict):
                        raise ValueError("it is no object")
                except ValueError as error:
                    yield behind, ShardError(f"{path}: row {behind} cannot be read ({error}); mend or drop it.")
                else:
                    yield behind, {"__key__": f"{path.name}:{behind}", "row": row}
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise ShardError(f"{path} cannot be read as a table ({error}); save it again as UTF-8.") from error


# (path, place) -> (place behind it, sample) for each sample from `place` on, 0 being the start; a sample that cannot be
# read comes as a ShardError, and one is raised where a file cannot be read on.
READERS: dict[str, Reader] = {
    ".tar": read_tar, ".parquet": read_parquet, ".jsonl": read_table, ".csv": read_table, ".tsv": read_table
}  # fmt: skip


def open_source(*locations: str | Path) -> Files | Hub:
    """What lies at the locations, one after another.

    Each is a file, or a folder, in which files of the first kind that is found are read: .tar (WebDataset shards, as
    img2dataset writes them) and .parquet below it; .jsonl, .csv or .tsv tables in it, which name pictures by paths
    inside the folder. Or there is one, hf://NAME, a data set of the Hugging Face hub.

    Raises:
        ShardError: there is nothing of these kinds.
    """
    if len(locations) == 1 and str(locations[0]).startswith(HUB):
        return Hub(str(locations[0]).removeprefix(HUB))
    return Files(tuple(path for location in locations for path in _find(Path(location))))


def _find(root: Path) -> list[Path]:
    if root.is_file() and root.suffix in READERS:
        return [root]
    for suffix, read in READERS.items():
        if paths := sorted(root.glob(f"*{suffix}" if read is read_table else f"**/*{suffix}")):
            return paths
    raise ShardError(
        f"There is no data at {root}: name a folder with {', '.join(READERS)} files in it, one of them, or "
        f"{HUB}NAME, a data set of the Hugging Face hub."
    )
