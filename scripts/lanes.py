"""Commands in two lanes, a core each: what is done is not done again; what became stale by its inputs starts anew."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

# Minutes are noted this often, so that those before a kill count too.
NOTE_SECONDS = 5


@dataclass(frozen=True)
class Part:
    """A command, and the minutes it took where the estimate was measured (2 cores of an AMD EPYC, AVX2).

    after: the parts whose output it reads, or "vae"; it waits for those of another lane.
    makes: the folder or file it writes; removed before the part starts anew.
    lane: 0 runs alone on both cores and first; 1 and 2 run beside each other then, a core each; 3 as 0, and last.
    """

    name: str
    minutes: float
    after: tuple[str, ...]
    makes: Path
    command: list[str]
    lane: int = 0


def part_keys(todo: list[Part], out: Path, vae: Path) -> dict[str, str]:
    """A hash for each part of what its output depends on: its command, the recipe in it, and the keys of its inputs.

    Where `out` and `vae` lie and what a recipe's comments say is left out, what the VAE's folder holds is in.
    """
    files = sorted(path for path in vae.iterdir() if path.is_file())
    keys = {"vae": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()}
    by_name = {part.name: part for part in todo}

    def key(name: str) -> str:
        if name not in keys:
            digest = hashlib.sha256()
            for word in by_name[name].command:
                digest.update(word.replace(str(out), "OUT").replace(str(vae), "VAE").encode() + b"\n")
                if word.endswith(".yaml"):
                    digest.update(json.dumps(yaml.safe_load(Path(word).read_text())).encode())
            digest.update(" ".join(map(key, by_name[name].after)).encode())
            keys[name] = digest.hexdigest()[:16]
        return keys[name]

    return {part.name: key(part.name) for part in todo}


class Run:
    """The parts on their way: who is done, who failed, which commands run now.

    OUT/done/NAME.json holds, once a part has started, {"name", "lane", "after", "key", "machine", "minutes", "done"}.
    """

    def __init__(self, out: Path, todo: list[Part], keys: dict[str, str], scale: float, lock: int) -> None:
        self.out, self.todo, self.keys, self.scale, self.lock = out, todo, keys, scale, lock
        self.ended = {part.name: threading.Event() for part in todo}
        self.failures: dict[str, str] = {}
        self.processes: list[subprocess.Popen] = []

    def run_lane(self, lane: int) -> None:
        """Runs a lane's parts one after another; those whose inputs failed are left out."""
        for part in self.todo:
            if part.lane != lane:
                continue
            for name in part.after:
                if name in self.ended:
                    self.ended[name].wait()
            missing = [name for name in part.after if name in self.failures]
            try:
                if missing:
                    self.failures[part.name] = f"{part.name} was not run for want of {missing[0]}."
                else:
                    self.run_part(part)
            except Exception as error:  # whatever it is, the parts that wait for this one must not start
                self.failures[part.name] = f"{part.name} could not be run: {error}."
            finally:
                self.ended[part.name].set()

    def minutes_left(self, part: Part) -> float:
        """The estimate from the start of `part` to the end of its lane and of the lanes after it."""
        whole = [sum(other.minutes for other in self.todo if other.lane == lane) for lane in range(4)]
        rest = sum(other.minutes for other in self.todo[self.todo.index(part) :] if other.lane == part.lane)
        if part.lane == 0:
            rest += max(whole[1:3])
        return (rest + (whole[3] if part.lane < 3 else 0.0)) * self.scale

    def run_part(self, part: Part) -> None:
        """Runs a part unless it is done; a failure is noted as a sentence with the last line of its log."""
        marker, log = self.out / "done" / f"{part.name}.json", self.out / "logs" / f"{part.name}.log"
        state = {"name": part.name, "lane": part.lane, "after": part.after, "key": self.keys[part.name],
                 "machine": machine(), "minutes": 0.0, "done": False}  # fmt: skip
        before = json.loads(marker.read_text()) if marker.is_file() else {}
        if before.get("key") == state["key"]:
            if before["done"]:
                return
            state["minutes"] = before["minutes"]
        else:
            remove(marker)  # first, so that a kill while removing is followed by removing the rest
            remove(part.makes)
            remove(log)
        print(f"[{part.name}] about {part.minutes * self.scale:.1f} min, {self.minutes_left(part):.0f} min to the end\n"
              f"    python -m {' '.join(part.command)}", flush=True)  # fmt: skip
        code = self.run_command(part, log, marker, state)
        if code != 0:
            tail = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            self.failures[part.name] = f"{part.name} ended with code {code}: {' '.join(tail)} (log: {log})."
            print(self.failures[part.name], flush=True)

    def run_command(self, part: Part, log: Path, marker: Path, state: dict) -> int:
        """Runs the command, adding the time to the minutes in its marker while it runs; returns its exit code."""
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        if part.lane in (1, 2):
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
        command = [sys.executable, "-m", *part.command]
        start, code = time.perf_counter(), None
        write_whole(marker, json.dumps(state))
        with open(log, "a", encoding="utf-8") as file:
            # A command that outlives this process (kill -9) holds the lock.
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, pass_fds=[self.lock])
        self.processes.append(process)
        while code is None:
            try:
                code = process.wait(NOTE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            minutes = state["minutes"] + (time.perf_counter() - start) / 60
            write_whole(marker, json.dumps({**state, "minutes": minutes, "done": code == 0}))
        return code

    def stop(self, *_: object) -> None:
        """Ends the running commands and this process, for SIGTERM and Ctrl-C."""
        for process in self.processes:
            process.terminate()
        os._exit(143)


def machine() -> str:
    """The processor's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or ["an unnamed processor"]
    return f"{names[0]}, {len(os.sched_getaffinity(0))} cores"


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old text or the new one."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)
