"""Bar 3: a real search on the demo recipe whose processes are killed at random moments, and what became of it.

python -m tests.chaos.kill_search [--kills 20] [--seed 0] [--most-seconds 25] [--budget 15m] [--out DIR] [--set ...]

Kills by SIGKILL: the command, its session (Ray's driver), an engine, a proxy, the raylet, the GCS, or all of them at
once, as a reboot does. Where the command itself is gone it's started again with --resume RUN; everything else the
search has to get over alone. At the end the run folder alone is asked whether anything was lost or counted twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestrator.state.run_dir import RunDir
from orchestrator.supervisor.session_mark import end_last_session
from tests.chaos.invariants import Evaluations, evaluations, problems
from tests.support.cli import ROOT
from tests.support.sessions import session_mark
from trials.cli import number_within, whole_number
from trials.system.processes import session_processes

_NAMES = {"engine": "ray::TrialWorker", "holder": "ray::ImplicitFunc", "raylet": "raylet", "gcs": "gcs_server"}
VICTIMS = ("command", "session", *_NAMES, "reboot")
_LEAST_SECONDS = 1.0
_MOST_WITHOUT_PROGRESS = 2
_PATIENCE_SECONDS = 90.0


@dataclass
class Kill:
    """One of them: when (seconds since the search began), whom, how many evaluations had been on disk."""

    seconds: float
    victim: str
    pids: list[int]
    evaluations: int
    mark: dict[str, Any] | None
    """The `session.json` of the session that was at work; None while there was none."""
    resumed: bool = False
    """Whether a person had to type --resume."""


@dataclass
class Night:
    """A search, its command as it runs now, and what was done to it."""

    out: Path
    options: Sequence[str]
    began: float = field(default_factory=time.monotonic)
    command: subprocess.Popen[bytes] | None = None
    kills: list[Kill] = field(default_factory=list)
    seen: Evaluations = field(default_factory=dict)
    deadline: str | None = None
    most_seconds: float = 25.0
    """Longest time from one kill to the next."""

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def evaluations(self) -> int:
        """How many were ever seen on disk."""
        return sum(map(len, self.seen.values()))

    @property
    def is_stuck(self) -> bool:
        """Whether it was killed again and again without an evaluation in between: it takes some time to start."""
        last = self.kills[-_MOST_WITHOUT_PROGRESS:]
        return len(last) == _MOST_WITHOUT_PROGRESS and last[0].evaluations == self.evaluations

    def start(self) -> None:
        """Starts the command, or goes on with its run folder if there is a search in it."""
        has_search = (self.out / "search.json").exists()
        arguments = ["--resume", str(self.out)] if has_search else ["demo", "--out", str(self.out), *self.options]
        environment = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        with self.out.with_suffix(".log").open("ab") as log:
            self.command = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.search", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_over(self) -> bool:
        """Whether the command has ended by itself."""
        return self.command is not None and self.command.poll() is not None

    def look(self) -> None:
        """Takes in the evaluations on disk and the deadline."""
        self.seen = evaluations(self.out, self.seen)
        if self.deadline is None and (self.out / "search.json").exists():
            self.deadline = json.loads((self.out / "search.json").read_text(encoding="utf-8"))["deadline"]

    def end(self) -> None:
        """Ends whatever still runs of it."""
        assert self.command is not None
        self.command.kill()
        self.command.wait()
        end_last_session(RunDir(self.out))

    def kill(self, victim: str) -> bool:
        """Kills somebody; False if there was nobody of that kind."""
        assert self.command is not None
        mark = session_mark(self.out)
        pids = _pids(victim, self.command.pid, None if mark is None else int(mark["session"]))
        if not pids:
            return False
        self.look()
        for pid in pids:
            _kill(pid)
        self.kills.append(Kill(self.seconds, victim, pids, self.evaluations, mark))
        if self.command.pid in pids:
            self.command.wait()
            self.kills[-1].resumed = True
            self.start()
        return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the search and prints what became of it; 1 if anything was lost."""
    arguments = _parser().parse_args(argv)
    out = arguments.out or Path(tempfile.mkdtemp(prefix="kill-night-")) / "run"
    if out.exists():  # it would go on with a search that is there, and kill it
        sys.exit(f"{out} is there already. Give a new folder by --out.")
    options = ["--budget", arguments.budget, "--set", "search.dashboard=false", *arguments.set]
    night = Night(out, options, most_seconds=arguments.most_seconds)
    run_night(night, arguments.kills, random.Random(arguments.seed))
    assert night.command is not None
    found = problems(RunDir(out), night.seen, night.deadline)
    if night.command.returncode != 0:
        found.append(f"the last command ended with exit code {night.command.returncode}; see {out}.log")
    print(table(night))
    print("\n".join(f"PROBLEM: {problem}" for problem in found) or "nothing lost, nothing counted twice")
    return int(bool(found))


def run_night(night: Night, kills: int, chance: random.Random, victims: Sequence[str] = VICTIMS) -> Night:
    """Runs a search from its start to its end, with so many kills at random moments."""
    with _run_through(night):
        while len(night.kills) < kills and not night.is_over():
            if night.is_stuck:
                _watch_until_it_gets_on(night)
            _watch(night, chance.uniform(_LEAST_SECONDS, night.most_seconds))
            _kill_somebody(night, chance.choice(victims))
    return night


def run_kills(night: Night, victims: Sequence[str]) -> Night:
    """Runs a search from its start to its end; kills these in their order, each in a session of its own.

    Each after an evaluation that came while its session was at work: one more may have come from the session before,
    between the last look at the disk and the kill.
    """
    with _run_through(night):
        for victim in victims:
            _watch_until_a_new_session(night)
            _watch_until_it_gets_on(night)
            _kill_somebody(night, victim)
    return night


@contextmanager
def _run_through(night: Night) -> Iterator[None]:
    """Starts a search, in which the block kills, and watches it from then on to its end."""
    night.start()
    try:
        yield
        while not night.is_over():
            _watch(night, 1.0)
        night.look()
    finally:
        night.end()


def table(night: Night) -> str:
    """For people."""
    lines = [" kill   seconds  victim    processes  evaluations before  went on"]
    for number, kill in enumerate(night.kills, start=1):
        how = "by --resume" if kill.resumed else "by itself"
        lines.append(
            f"{number:5d}  {kill.seconds:8.1f}  {kill.victim:8s}  {len(kill.pids):9d}  {kill.evaluations:18d}  {how}"
        )
    lines.append(
        f"{len(night.kills)} kills; {night.evaluations} evaluations of {len(night.seen)} trials; "
        f"{night.seconds:.0f} s in all; run folder {night.out}"
    )
    return "\n".join(lines)


def _watch(night: Night, seconds: float) -> None:
    """Waits; whatever is on disk meanwhile is noted, so that nothing of it may be missing later."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not night.is_over():
        night.look()
        time.sleep(0.2)


def _watch_until_a_new_session(night: Night) -> None:
    """Waits for a session other than the one in which somebody was killed last."""
    known = (None, night.kills[-1].mark if night.kills else None)
    while session_mark(night.out) in known and not night.is_over():
        _watch(night, 0.5)


def _watch_until_it_gets_on(night: Night) -> None:
    before = night.evaluations
    while night.evaluations == before and not night.is_over():
        _watch(night, 0.5)


def _kill_somebody(night: Night, victim: str) -> None:
    """Whoever is drawn is waited for, as Ray takes some time to start, and somebody else killed if nobody comes."""
    ends = time.monotonic() + _PATIENCE_SECONDS
    while not night.is_over() and not night.kill(victim):
        _watch(night, 0.5)
        if time.monotonic() > ends:
            victim = "reboot"


def _pids(victim: str, command: int, session: int | None) -> list[int]:
    """Of whom to kill; none where there is no such process now."""
    ours = [] if session is None else session_processes(session)
    if victim == "command":
        return [command]
    if victim == "session":
        return [process.pid for process in ours if process.pid == session]
    if victim == "reboot":
        return [command, *(process.pid for process in ours)]
    return [process.pid for process in ours if _is_named(process, _NAMES[victim])][:1]


def _is_named(process: psutil.Process, name: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.name().startswith(name))
    return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="python -m tests.chaos.kill_search", description="Kill a search's processes."
    )
    arguments.add_argument("--kills", type=whole_number(1), default=20)
    arguments.add_argument("--seed", type=int, default=0, help="of when and whom")
    arguments.add_argument(
        "--most-seconds", type=number_within(1, 600), default=25.0, help="from one kill to the next (default: 25)"
    )
    arguments.add_argument("--budget", default="15m", help="of the search")
    arguments.add_argument("--out", type=Path, help="run folder (default: a new one in the system's temporary folder)")
    arguments.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
