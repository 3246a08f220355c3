"""The soak's arithmetic on made-up samples, and its look at real processes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.chaos.soak import family, growth, leaks, look, table

MIB = 2**20


def samples(hours: float, **per_hour: float) -> list[dict[str, float]]:
    """One a minute, of which the first five are those of a start."""
    made = []
    for n in range(round(hours * 60)):
        sample = {"hours": n / 60, "memory of command": 100.0 * MIB}
        if n >= 5:
            grown = {name.replace("_", " "): (500 + each * n / 60) for name, each in per_hour.items()}
            sample |= {"memory of workers": 900.0 * MIB, **grown}
        made.append(sample)
    return made


def test_what_grows_is_told_and_what_starts_is_not() -> None:
    found = growth(samples(1, open_files_of_session=30.0, threads_of_session=1.0))
    assert found["open files of session"] == pytest.approx(30)
    assert found["memory of workers"] == pytest.approx(0, abs=1)
    assert leaks(found) == ["open files of session"]


def test_a_short_one_tells_nothing() -> None:
    found = growth(samples(0.2, open_files_of_session=3000.0))
    assert all(math.isnan(each) for each in found.values())
    assert not leaks(found)
    assert "too short to tell" in "\n".join(table(samples(0.2), growth(samples(0.2))))


def test_what_tune_keeps_of_every_segment_is_no_leak_of_ours() -> None:
    keeps = {"memory_of_session": 200.0 * MIB, "memory_of_raylet": 200.0 * MIB}
    assert leaks(growth(samples(1, **keeps, segments=1000.0))) == ["memory of raylet", "memory of session"]
    assert leaks(growth(samples(1, **keeps, segments=2000.0))) == ["memory of raylet"]


def test_it_looks_at_the_processes_and_folders_of_a_search(tmp_path: Path) -> None:
    (tmp_path / "trials" / "0001").mkdir(parents=True)
    (tmp_path / "trials" / "0001" / "config.json").write_text("{}", encoding="utf-8")
    os.link(tmp_path / "trials" / "0001" / "config.json", tmp_path / "again")
    (tmp_path / "logs").mkdir()
    said = ("trial 0001 started: usual", "trial 0001 paused", "trial 0001 goes on from 9 tokens")
    (tmp_path / "logs" / "search.log").write_text("\n".join(said), encoding="utf-8")
    found = look(os.getpid(), tmp_path)
    assert found["memory of command"] > 10 * MIB
    assert found["open files of command"] >= 3
    assert (found["files of run folder"], found["trials"]) == (5, 1)  # three folders, and a file under two names
    assert found["segments"] == 2
    assert os.getpid() in {process.pid for process in family(os.getpid(), None)}
