"""Checks local downloads of LLaVA's two data sets and joins what is whole into one file for mllm.train.

    python -m scripts.llava_data playground/data --sets 558k --out playground/data/align.json
    python -m scripts.llava_data playground/data --sets 665k --out playground/data/tune.json
    python -m mllm.train RECIPE.yaml data=playground/data/tune.json images=playground/data

ROOT is laid out as LLaVA's README says:
    LLaVA-Pretrain/blip_laion_cc_sbu_558k.json, LLaVA-Pretrain/images/
    llava_v1_5_mix665k.json, coco/train2017/, gqa/images/, ocr_vqa/images/, textvqa/train_images/, vg/VG_100K/,
    vg/VG_100K_2/

Of every picture the header is read, not the pixels (`python -m mllm.inspect_data` reads all). A picture that lies there
under another extension is taken: OCR-VQA's downloads hold .gif and .png where the rows say .jpg. Rows whose picture is
missing or broken are left out and counted by folder; more than --max-share of a set's rows is an error, and nothing is
written.
"""

import argparse
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from encoder.images import MAX_PIXELS, ImageError, load_image
from mllm.conversation import images_of
from mllm.data import load_rows
from training.cli import run_cli


@dataclass(frozen=True)
class Set:
    """A published data set: its file and the folder of its pictures below ROOT, and its rows by folder.

    Row counts: the author's in LLaVA issue 702 (RefCOCO, A-OKVQA, VQAv2, OKVQA and LLaVA-Instruct are coco's, ShareGPT
    has no pictures); of 558k the name alone says how many there are.
    """

    file: str
    pictures: str
    rows: dict[str, int]


SETS = {
    "558k": Set("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "LLaVA-Pretrain/images", {}),
    "665k": Set("llava_v1_5_mix665k.json", "", {
        "coco/train2017": 364_100, "gqa/images": 72_140, "ocr_vqa/images": 80_000, "textvqa/train_images": 21_953,
        "vg": 86_417, "text only": 40_688,
    }),
}  # fmt: skip
EXTENSIONS = (".jpg", ".gif", ".png", ".jpeg")
# Shops answer with a picture of one pixel for a cover that they no longer have.
LEAST_SIDE = 10
# In copies that people share these begin well and are torn (LLaVA issue 1618, UFO issue 28), so they are read whole.
TORN = {"ocr_vqa/images/1437717772.jpg", "ocr_vqa/images/810928949.jpg"}


@dataclass(frozen=True)
class Picture:
    """What was found for a row's picture: its path below ROOT and (width, height), or the problem with it."""

    path: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str = ""


def find_picture(root: Path, name: str) -> Picture:
    """Looks for the picture `name`, a path below `root`, under any extension, and reads its header."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return Picture(problem="outside ROOT")
    names = [name, *(str(path.with_suffix(extension)) for extension in EXTENSIONS)]
    found = next((other for other in names if (root / other).is_file()), None)
    if found is None:
        return Picture(problem="missing")
    try:
        with Image.open(root / found) as image:
            size = image.size
        if name in TORN:
            load_image(found, root)
    except ImageError:
        return Picture(problem="torn")
    except Image.DecompressionBombError:
        return Picture(problem="too large")
    except Exception:  # Pillow's readers meet damaged files with errors of any class
        return Picture(problem="not a picture")
    if min(size) < LEAST_SIDE:
        return Picture(problem=f"below {LEAST_SIDE} px")
    if size[0] * size[1] > MAX_PIXELS:
        return Picture(problem="too large")
    return Picture(found, size)


def folder_of(names: list[str]) -> str:
    """What a row is counted under: the first two folders of its picture, vg's two together."""
    if not names:
        return "text only"
    parts = PurePosixPath(names[0]).parts[:-1]
    return "vg" if parts[:1] == ("vg",) else "/".join(parts[:2])


def join(root: Path, name: str, max_share: float = 0.0, threads: int = 8) -> list[dict]:
    """The rows of a set whose pictures are whole, with paths below `root`; prints the counts.

    Raises:
        ValueError: the set's file is not there or is no LLaVA data, or more than `max_share` of its rows are left out.
    """
    chosen = SETS[name]
    if not (root / chosen.file).is_file():
        raise ValueError(f"There is no {chosen.file} in {root}; download it there, as LLaVA's README says.")
    rows = load_rows(root / chosen.file)
    wanted = [[str(PurePosixPath(chosen.pictures) / one) for one in images_of(row)] for row in rows]
    names = list(dict.fromkeys(one for row in wanted for one in row))
    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(names, pool.map(lambda one: find_picture(root, one), names), strict=True))
    whole, counts = [], Counter()
    problems: dict[str, Counter] = {}
    for row, needed in zip(rows, wanted, strict=True):
        folder = folder_of(needed)
        counts[folder] += 1
        wrong = next((found[one].problem for one in needed if found[one].problem), None)
        if wrong is not None:
            problems.setdefault(folder, Counter())[wrong] += 1
            continue
        paths = [found[one].path for one in needed]
        whole.append({**row, "image": paths if isinstance(row["image"], list) else paths[0]} if paths else row)
    print(f"{name}: {len(whole):,} of {len(rows):,} rows can be used")
    for folder in sorted(counts.keys() | chosen.rows.keys()):
        _print_folder(folder, counts[folder], chosen.rows.get(folder), problems.get(folder, Counter()), found)
    if len(rows) - len(whole) > max_share * len(rows):
        raise ValueError(
            f"{len(rows) - len(whole):,} of {len(rows):,} rows of {name} have no whole picture, more than the share of "
            f"{max_share:g}: download the folders named above again, or raise --max-share."
        )
    return whole


def _print_folder(folder: str, rows: int, published: int | None, problems: Counter, found: dict[str, Picture]) -> None:
    sizes = [picture.size for name, picture in found.items() if picture.path and folder_of([name]) == folder]
    line = f"  {folder}: {rows:,} rows"
    if published not in (None, rows):
        line += f" (published: {published:,})"
    if sizes:
        line += f", {len(sizes):,} pictures of {min(map(min, sizes))} to {max(map(max, sizes))} px"
    renamed = sum(bool(it.path) and it.path != name for name, it in found.items() if folder_of([name]) == folder)
    if renamed:
        line += f", {renamed:,} under another extension"
    print(line + "".join(f"; {count:,} rows left out: {problem}" for problem, count in problems.most_common()))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.llava_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of the downloads")
    parser.add_argument("--sets", nargs="+", choices=SETS, required=True, help="what to check and join")
    parser.add_argument("--out", type=Path, required=True, help="the .json file to write; its pictures lie below ROOT")
    parser.add_argument("--max-share", type=float, default=0.01, help="of rows left out, 0 to 1 (default: 0.01)")
    args = parser.parse_args(argv)
    joined = [row for name in args.sets for row in join(args.root, name, args.max_share)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(joined))
    print(f"{len(joined):,} rows in {args.out}")


if __name__ == "__main__":
    run_cli(main)
