"""`make tiny` on small commands instead of trainings: what runs again, what starts anew, what a failure stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import tiny
from scripts.lanes import Part, part_keys
from scripts.tiny import parts

# Appends a line to the file it is given and waits; "--fail" ends it with an error.
WORKER = """
import sys, time, pathlib
path = pathlib.Path(sys.argv[1]); path.parent.mkdir(parents=True, exist_ok=True)
with path.open("a") as file: file.write("ran\\n")
time.sleep(float(sys.argv[2]))
if "--fail" in sys.argv: sys.exit("it went wrong")
"""


@pytest.fixture()
def place(tmp_path, monkeypatch):
    """A folder with a VAE, a recipe and the module `worker`, made the current one; reports are not written."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("a: 1")
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(tiny.__file__).parent.parent}")
    monkeypatch.setattr(tiny, "write_report", lambda out: "none")
    return tmp_path


def work(name, after=(), lane=0, seconds="0", more=()):
    out = Path("out") / name
    return Part(name, 0.1, after, out, ["worker", f"{out}/lines", seconds, *more], lane)


def make(monkeypatch, *todo):
    monkeypatch.setattr(tiny, "parts", lambda out, vae, scale: list(todo))
    tiny.run(Path("out"), Path("vae"), 1.0)


def runs(place, name):
    path = place / "out" / name / "lines"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_what_is_done_is_not_done_again_and_a_change_starts_what_follows_anew(place, monkeypatch):
    first, other = work("first", ("vae",), more=["recipe.yaml"]), work("other")
    then = work("then", ("first",), lane=1)
    for _ in range(2):
        make(monkeypatch, first, other, then)
        assert [runs(place, name) for name in ("first", "other", "then")] == [1, 1, 1]
    (place / "recipe.yaml").write_text("a: 1  # took an hour")
    make(monkeypatch, first, other, then)
    assert [runs(place, name) for name in ("first", "other", "then")] == [1, 1, 1]
    for change in ("recipe.yaml", "vae/config.json"):
        before = {name: (place / "out" / name / "lines").stat().st_mtime_ns for name in ("first", "other", "then")}
        (place / "out" / "then" / "checkpoint").write_text("of the old recipe")
        (place / change).write_text("a: 2")
        make(monkeypatch, first, other, then)
        after = {name: (place / "out" / name / "lines").stat().st_mtime_ns for name in before}
        assert [name for name in before if before[name] != after[name]] == ["first", "then"]
        assert runs(place, "then") == 1 and not (place / "out" / "then" / "checkpoint").exists()


def test_a_failure_stops_what_needs_it_and_nothing_else(place, monkeypatch):
    with pytest.raises(ValueError, match="bad ended with code 1: it went wrong.*bad_too was not run for want of bad"):
        make(monkeypatch, work("bad", lane=1, more=["--fail"]), work("bad_too", ("bad",), lane=1),
             work("good", lane=1), work("other", lane=2))  # fmt: skip
    assert [runs(place, name) for name in ("bad", "bad_too", "good", "other")] == [1, 0, 1, 1]
    with pytest.raises(ValueError, match="bad ended"):  # what failed is tried again, on what it left
        make(monkeypatch, work("bad", lane=1, more=["--fail"]), work("good", lane=1))
    assert [runs(place, name) for name in ("bad", "good")] == [2, 1]


def test_a_part_waits_for_its_input_in_the_other_lane(place, monkeypatch):
    then, slow = work("then", ("slow",), lane=1), work("slow", lane=2, seconds="1")
    make(monkeypatch, then, slow)
    started = (place / "out" / "then" / "lines").stat().st_mtime_ns
    assert started > (place / "out" / "slow" / "lines").stat().st_mtime_ns + 1e9
    make(monkeypatch, then, work("slow", lane=2, seconds="0"))
    assert (place / "out" / "then" / "lines").stat().st_mtime_ns > started


def test_killed_it_goes_on_and_adds_the_minutes_up(place):
    code = (
        "from scripts import lanes, tiny; from pathlib import Path\n"
        "lanes.NOTE_SECONDS = 0.2; tiny.write_report = lambda out: 'none'\n"
        "make = lambda *a: [tiny.Part('long', 1.0, (), Path('out/long'), ['worker', 'out/long/lines', '3'])]\n"
        "tiny.parts = make; tiny.run(Path('out'), Path('vae'), 1.0)\n"
    )
    lines, marker = place / "out" / "long" / "lines", place / "out" / "done" / "long.json"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    while not lines.is_file():
        time.sleep(0.1)
    time.sleep(1)
    with pytest.raises(ValueError, match="another make tiny works in out"):
        tiny.run(Path("out"), Path("vae"), 1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) != 0
    before = json.loads(marker.read_text())
    assert not before["done"] and before["minutes"] > 0.5 / 60
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=60).returncode == 0
    after = json.loads(marker.read_text())
    assert after["done"] and after["minutes"] > before["minutes"] + 2.9 / 60 and runs(place, "long") == 2


def test_keys_know_no_places_but_scale_and_every_input_is_an_earlier_part(place):
    vae = place / "vae"
    repository = Path(tiny.__file__).parent.parent
    os.chdir(repository)
    todo = parts(Path("runs/tiny"), vae, 1.0)
    keys = part_keys(todo, Path("runs/tiny"), vae)
    assert keys == part_keys(parts(place / "else", vae, 1.0), place / "else", vae)
    smaller = part_keys(parts(Path("runs/tiny"), vae, 0.5), Path("runs/tiny"), vae)
    assert not any(smaller[part.name] == keys[part.name] for part in todo)
    assert all(part.makes.is_relative_to("runs/tiny") and part.makes != Path("runs/tiny") for part in todo)
