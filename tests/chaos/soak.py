"""Does a long search leak? One search of the demo, with what it takes on record every minute, and how fast that grows.

    python -m tests.chaos.soak --minutes 60

Memory, open files and threads are summed by kind of process: the command, its session, Ray's daemons, its workers. The
run folder grows with the trials that it keeps, as it should. What grows is told by least squares over the time in which
trials run, without the first ten minutes, in which everything starts and allocators settle.

<out>.samples.jsonl    every sample        <out>.log    what the search said
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from tests.support.cli import ROOT
from tests.support.sessions import session_mark
from trials.cli import number_within
from trials.system.files import append_json_line
from trials.system.processes import is_alive, session_processes

_SHARED_TEMPORARY = "/tmp/ray"
_SMALL = ("train_tokens=20000", "eval_rows=40", "test_rows=20", "search.samples=2", "search.full_trials=null")
_MIB = 2**20
_SEGMENT = re.compile(r"trial \d+ (?:started|goes on from)")
_SETTLED_HOURS = 1 / 6
_LEAST_SAMPLES = 10
_MOST_PER_HOUR: dict[str, float] = {"memory": 64 * _MIB, "open files": 10, "threads": 10, "temporary": 256 * _MIB}
"""Growth that is no leak: allocators and logs take their time to settle."""
_PER_SEGMENT: dict[str, float] = {"memory of session": 0.1 * _MIB, "memory of gcs": 0.05 * _MIB}
"""Ray Tune keeps every trial of its own until the end, and each segment of a trial of ours is one: from where it begins
or goes on until it pauses or ends. Bare Tune, with a function that reports twice, takes 0.11 MiB for each (Ray 2.60).
"""
_WORDS = {"memory": "MiB", "temporary": "MiB", "run folder": "MiB"}

Sample = Mapping[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Soaks and prints the table; 1 if something grows that shouldn't, or the search failed."""
    given = _parser().parse_args(argv)
    out = given.out or Path(tempfile.mkdtemp(prefix="soak-")) / "run"
    samples, code = soak(out, given.minutes, given.every, given.set)
    grown = growth(samples)
    print("\n".join(table(samples, grown)))
    print(f"the search ended with {code}; {len(samples)} samples in {out.with_suffix('.samples.jsonl')}")
    return 1 if code or leaks(grown) else 0


def soak(out: Path, minutes: float, every: float, settings: Sequence[str]) -> tuple[list[Sample], int]:
    """One search of so many minutes, looked at every so many seconds; its samples and exit code."""
    out.parent.mkdir(parents=True, exist_ok=True)
    options = ["--budget", f"{minutes * 60:.0f}s", "--out", str(out), "--set", *_SMALL, *settings]
    environment = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    samples: list[Sample] = []
    began = time.monotonic()
    with out.with_suffix(".log").open("ab") as log:
        command = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.search", "demo", *options],
            cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        while command.poll() is None:
            sample = {"hours": (time.monotonic() - began) / 3600, **look(command.pid, out)}
            append_json_line(out.with_suffix(".samples.jsonl"), sample)
            samples.append(sample)
            _wait(command, every)
    finally:
        if command.poll() is None:
            command.send_signal(signal.SIGINT)  # it exports what it has, as for a person
            command.wait()
    return samples, command.returncode


def look(command: int, out: Path) -> dict[str, float]:
    """What the search takes now: of its processes by kind, of its folders as a whole."""
    ours = family(command, _session(out))
    found: dict[str, float] = {}
    for process in ours:
        for name, value in _taken(process).items():
            key = f"{name} of {_kind(process, command)}"
            found[key] = found.get(key, 0) + value
    for name, folder in (("run folder", out), ("temporary", temporary_folder(ours))):
        size, files = _size(folder)
        found |= {name: size, f"files of {name}": files}
    trials = len(list(out.glob("trials/*/config.json")))
    return found | {"processes": len(ours), "trials": trials, "segments": _segments(out)}


def family(command: int, session: int | None) -> list[psutil.Process]:
    """A command, all that it started, and all of its search's session."""
    try:
        first = psutil.Process(command)
        started = first.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    others = [] if session is None else session_processes(session)
    return [process for process in {first, *started, *others} if is_alive(process.pid)]


def temporary_folder(ours: Iterable[psutil.Process]) -> Path | None:
    """Ray's, as its raylet was told; of a folder that all searches share only this one's."""
    for process in ours:
        words = _words(process)
        for name in ("temp_dir", "session_dir"):
            found = next((word.partition("=")[2] for word in words if re.match(f"--{name}=", word)), None)
            if words[0].endswith("/raylet") and found and found != _SHARED_TEMPORARY:
                return Path(found)
    return None


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """Those from ten minutes after workers began until they ended."""
    working = [sample for sample in samples if "memory of workers" in sample]
    return [sample for sample in working if sample["hours"] >= working[0]["hours"] + _SETTLED_HOURS]


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """By how much each figure grows in an hour, by least squares over what is settled; NaN where that's too little."""
    of = settled(samples)
    names = sorted({name for sample in samples for name in sample} - {"hours"})
    return {name: _slope([(sample["hours"], sample[name]) for sample in of if name in sample]) for name in names}


def leaks(grown: Mapping[str, float]) -> list[str]:
    """The figures that grow by more than they may; the run folder and what counts it may grow."""
    return [name for name, per_hour in grown.items() if per_hour > _allowed(name, grown)]


def _allowed(name: str, grown: Mapping[str, float]) -> float:
    segments = grown.get("segments", 0.0)
    return _MOST_PER_HOUR.get(name.partition(" of ")[0], math.inf) + _PER_SEGMENT.get(name, 0.0) * segments


def table(samples: Sequence[Sample], grown: Mapping[str, float]) -> list[str]:
    """A line a figure: at first, at most, at last, by how much it grows, and whether that's too much."""
    lines = [f"{'':<34}{'first':>12}{'most':>12}{'last':>12}{'per hour':>12}"]
    for name, per_hour in grown.items():
        values = [sample[name] for sample in samples if name in sample]
        unit = next((word for start, word in _WORDS.items() if name.startswith(start)), "")
        each = _MIB if unit else 1
        shown = "".join(f"{value / each:>12,.1f}" for value in (values[0], max(values), values[-1], per_hour))
        lines.append(f"{name + (f', {unit}' if unit else ''):<34}{shown}  {_verdict(name, grown)}")
    return lines


def _verdict(name: str, grown: Mapping[str, float]) -> str:
    allowed = _allowed(name, grown)
    if math.isnan(grown[name]) or math.isnan(allowed):
        return "too short to tell"
    if grown[name] > allowed:
        return "GROWS"
    return "ok" if math.isfinite(allowed) else ""


def _slope(points: Sequence[tuple[float, float]]) -> float:
    if len(points) < _LEAST_SAMPLES:
        return math.nan
    hours, values = np.array(points).T
    return float(np.polyfit(hours - hours.mean(), values, 1)[0])


@dataclass(frozen=True)
class _Daemon:
    """A word of a command line that tells one kind of process from the others."""

    word: str
    kind: str


_KINDS = (
    _Daemon("orchestrator.supervisor.session", "session"),
    _Daemon("raylet/raylet", "raylet"),
    _Daemon("gcs_server", "gcs"),
    _Daemon("dashboard", "dashboard"),
    _Daemon("ray::", "workers"),
    _Daemon("default_worker.py", "workers"),
)


def _kind(process: psutil.Process, command: int) -> str:
    if process.pid == command:
        return "command"
    line = " ".join(_words(process)[:6])
    return next((known.kind for known in _KINDS if known.word in line), "others")


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def _taken(process: psutil.Process) -> dict[str, float]:
    """Resident memory in bytes, open files and threads of a process; nothing of one that is gone."""
    try:
        files, threads = process.num_fds(), process.num_threads()
        return {"memory": process.memory_info().rss, "open files": files, "threads": threads}
    except psutil.Error:
        return {}


def _size(folder: Path | None) -> tuple[float, float]:
    """Bytes and number of the files of a folder, each counted once whatever its names."""
    found: dict[int, int] = {}
    for path in folder.rglob("*") if folder is not None else ():
        try:
            stat = path.lstat()
        except OSError:  # gone meanwhile
            continue
        found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values()), len(found)


def _segments(out: Path) -> int:
    try:
        said = (out / "logs" / "search.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return len(_SEGMENT.findall(said))


def _session(out: Path) -> int | None:
    mark = session_mark(out)
    return None if mark is None else int(mark["session"])


def _wait(command: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        command.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="python -m tests.chaos.soak", description="Watch what a long search takes."
    )
    arguments.add_argument("--minutes", type=number_within(1, 24 * 60), default=60.0, help="of the search's budget")
    arguments.add_argument("--every", type=number_within(1, 3600), default=60.0, help="seconds from sample to sample")
    arguments.add_argument("--out", type=Path, help="run folder (default: a new one in the system's temporary folder)")
    arguments.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
