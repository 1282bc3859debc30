"""Where samples come from: files read one after another, dealt among readers, taken up again at any place."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.shards import ShardError, read_tar

# Where to go on: number of the file, place inside it in the file's own measure, samples read so far.
Place = list[int]
Reader = Callable[[Path, int], Iterator[tuple[int, dict[str, Any] | ShardError]]]


@dataclass(frozen=True)
class Files:
    """The samples of many files as one stream, without a look at them first.

    Args:
        root: the folder of the files; paths of pictures that they name are relative to it and must stay inside.
        paths: the files.
        read: (path, place) -> (place behind the sample, sample) for each sample from `place` on, 0 being the start; a
            sample that cannot be read comes as a ShardError, and one is raised where a file cannot be read on.
    """

    root: Path
    paths: tuple[Path, ...]
    read: Reader

    def samples(
        self, reader: int = 0, readers: int = 1, place: Place | None = None, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[Place, dict[str, Any] | ShardError]]:
        """The samples of one of several readers, each with the place to give to go on behind it.

        Every reader has its own files; where there are fewer files than readers, all read all files and deal the
        samples out in turn. A file cannot be read on gives one ShardError, and the next file follows. `rng` shuffles
        the order of the files: the same for all readers.
        """
        order = np.arange(len(self.paths)) if rng is None else rng.permutation(len(self.paths))
        by_file = len(order) >= readers
        first, inside, before = place or (0, 0, 0)
        for number in range(first, len(order)):
            if by_file and number % readers != reader:
                continue
            if number != first:
                inside = 0
            try:
                for behind, sample in self.read(self.paths[order[number]], inside):
                    before += 1
                    if by_file or (before - 1) % readers == reader:
                        yield [number, behind, before], sample
            except ShardError as error:
                if by_file or reader == 0:
                    yield [number + 1, 0, before], error

    def fingerprint(self) -> str:
        """Changes with the names and sizes of the files, which places refer to."""
        names = [f"{path.relative_to(self.root)} {path.stat().st_size}" for path in self.paths]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def open_source(location: str | Path) -> Files:
    """The files at `location`: a .tar file, or a folder with such files in it or below it.

    Raises:
        ShardError: there is nothing of these kinds.
    """
    root = Path(location)
    paths = sorted(root.rglob("*.tar")) if root.is_dir() else [root]
    if not paths or not paths[0].is_file():
        raise ShardError(f"There are no .tar shards at {root}; name the folder that holds them, or one of them.")
    return Files(root if root.is_dir() else root.parent, tuple(paths), read_tar)
