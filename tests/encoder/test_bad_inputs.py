"""What the world holds instead of pictures with captions: none of it ends a run that skips, all of it is counted."""

import io
import json
import struct
import tarfile
import zlib
from itertools import islice

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from encoder.cache import LatentCache
from encoder.cache_latents import cache_latents
from encoder.data import ImageTextStream
from encoder.train_vae import Crops
from training.shards import write_shards
from training.streaming import ShuffledStream

TEXT = b"two colours"


def picture(mode="RGB", kind="PNG", size=(24, 16), **options):
    """Red on the left and blue on the right."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(kind="JPEG", exif=exif, quality=95)


def promising(side):
    """A PNG whose header says side x side, without pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# What a sample holds, and what it is counted as; None: it is used.
SAMPLES = {
    "no caption": ({"png": picture()}, "captions"),
    "no picture": ({"txt": TEXT}, "pictures"),
    "1 x 1": ({"png": picture(size=(1, 1)), "txt": TEXT}, None),
    "40,000 x 40,000": ({"png": promising(40_000), "txt": TEXT}, "pictures"),
    "CMYK": ({"jpg": picture("CMYK", "JPEG"), "txt": TEXT}, None),
    "palette": ({"png": picture("P"), "txt": TEXT}, None),
    "turned by EXIF": ({"jpg": turned(), "txt": TEXT}, None),
    "text renamed .jpg": ({"jpg": b"once upon a time", "txt": TEXT}, "pictures"),
    "truncated picture": ({"jpg": picture(kind="JPEG")[:300], "txt": TEXT}, "pictures"),
    "a link in the tar": ({"txt": TEXT}, "pictures"),
}
# Rows of a table beside the pictures, likewise.
ROWS = {
    "path outside root": ({"file_name": "../secret.png", "caption": "words"}, "pictures"),
    "absolute path": ({"file_name": "/etc/passwd", "caption": "words"}, "pictures"),
    "missing file": ({"file_name": "none.png", "caption": "words"}, "pictures"),
    "a number for a path": ({"file_name": 7, "caption": "words"}, "pictures"),
    "empty caption": ({"file_name": "fine.png", "caption": " "}, "captions"),
    "no JSON": ("{", "shards"),
}


def write_sample(folder, name):
    """The bad sample between two good ones; returns the location to read."""
    good = {"png": picture(), "txt": TEXT}
    if name in SAMPLES:
        write_shards(folder / "data", [{"__key__": "0", **good}, {"__key__": "1", **SAMPLES[name][0]},
                                       {"__key__": "2", **good}])  # fmt: skip
        if name == "a link in the tar":
            with tarfile.open(folder / "data" / "00001.tar", "w") as tar:
                link = tarfile.TarInfo("3.png")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(link)
        return folder / "data"
    (folder / "data").mkdir()
    for place in ("secret.png", "data/fine.png"):
        (folder / place).write_bytes(good["png"])
    fine = json.dumps({"file_name": "fine.png", "caption": "words"})
    row = ROWS[name][0]
    bad = row if isinstance(row, str) else json.dumps(row)
    (folder / "data" / "metadata.jsonl").write_text(f"{fine}\n{bad}\n{fine}\n")
    return folder / "data"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", [*SAMPLES, *ROWS])
def test_a_bad_sample_costs_no_other_and_is_counted(tmp_path, name):
    location = write_sample(tmp_path, name)
    kind = {**SAMPLES, **ROWS}[name][1]
    stream = ImageTextStream(location, on_error="skip")
    pairs = list(stream.pairs())
    assert len(pairs) == (3 if kind is None else 2)
    assert stream.skipped == ({} if kind is None else {kind: 1})
    for pair in pairs:
        assert pair.image.mode == "RGB"
        if pair.image.size != (1, 1):  # red is first, on the left or, turned, on top
            assert np.abs(np.asarray(pair.image, dtype=int)[2, 2] - (255, 0, 0)).max() < 40
    if kind is not None:
        with pytest.raises(ValueError, match=str(location)):
            list(ImageTextStream(location).pairs())


def test_truncated_files_cost_what_is_cut_off(tmp_path):
    good = [{"__key__": f"{index}", "png": picture(), "txt": TEXT} for index in range(6)]
    write_shards(tmp_path / "tar", good, per_shard=3)
    first = tmp_path / "tar" / "00000.tar"
    with tarfile.open(first) as tar:
        first.write_bytes(first.read_bytes()[: tar.getmembers()[2].offset_data + 7])  # in the second picture
    rows = [{"image": {"bytes": picture(), "path": None}, "caption": "words", "label": 3}] * 3
    (tmp_path / "parquet").mkdir()
    for name in ("0", "1"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "parquet" / f"{name}.parquet")
    cut = tmp_path / "parquet" / "0.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    for kind, count in (("tar", 4), ("parquet", 3)):
        stream = ImageTextStream(tmp_path / kind, on_error="skip")
        assert len(list(stream.pairs())) == count and stream.skipped == {"shards": 1}


def test_all_of_it_becomes_a_cache_and_crops(tmp_path, small_vae):
    samples = [{"__key__": f"{number:02d}", **sample} for number, (sample, _) in enumerate(SAMPLES.values())]
    write_shards(tmp_path / "data", samples)
    stream = ImageTextStream(tmp_path / "data", on_error="skip")
    count, skipped = cache_latents(stream, small_vae, 32, tmp_path / "cache")
    assert count == len(LatentCache([tmp_path / "cache"])) == 4
    assert skipped == {"captions": 1, "pictures": 5}
    for on_error in ("skip", "stop"):
        stream = ImageTextStream(tmp_path / "data", on_error=on_error)
        crops = ShuffledStream(stream.source, Crops(stream, crop_size=8, seed=0), seed=0, buffer_size=3)
        if on_error == "skip":
            items = list(islice(crops, 8))  # two epochs; captions do not count here, and 1 x 1 is too small
            assert len({item["key"] for item in items}) == 4 and items[-1]["progress"][1]["skipped"] >= 6
        else:
            with pytest.raises(ValueError, match="sample .* picture|smaller"):
                list(islice(crops, 8))
