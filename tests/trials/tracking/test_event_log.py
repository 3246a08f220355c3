"""A trial's TensorBoard events, and what can't be written of them."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from trials.console.troubles import ReportingFailures
from trials.records.trial_dir import TrialDir
from trials.tracking.event_log import EventLog


def events(folder: Path) -> list[Event]:
    found = []
    for file in sorted(folder.glob("tensorboard/events.out.tfevents.*"), key=os.path.getmtime):
        rest = file.read_bytes()
        while rest:
            length = int.from_bytes(rest[:8], "little")
            found.append(Event.FromString(rest[12 : 12 + length]))
            rest = rest[16 + length :]
    return found


def test_figures_and_texts_are_there_and_steps_that_are_trained_again_are_hidden(tmp_path: Path) -> None:
    folder, troubles = TrialDir(tmp_path), ReportingFailures()
    with EventLog(folder, 0, troubles) as first:
        first.add_scalar("train/loss", 2.0, 1, walltime=7.0)
        first.add_text("args", "{}")
    with EventLog(folder, 0, troubles) as second:  # in the same second, perhaps
        second.add_scalar("train/loss", 1.5, 1)
    found = events(tmp_path)
    scalars = [(event.step, event.summary.value[0].simple_value) for event in found if event.summary.value]
    assert scalars == [(1, 2.0), (0, 0.0), (1, 1.5)]
    (restart,) = [event for event in found if event.HasField("session_log")]
    assert (restart.step, restart.session_log.status) == (1, SessionLog.START)
    assert found[1].wall_time == 7.0
    assert troubles.pop_unreported() == {}


def test_a_process_that_does_not_write_writes_nothing(tmp_path: Path) -> None:
    with EventLog(TrialDir(tmp_path, is_written=False), 0) as log:
        log.add_scalar("train/loss", 2.0, 1)
    assert not list(tmp_path.iterdir())


def a_file_in_its_place(path: Path) -> None:
    (path / "tensorboard").write_text("not a folder")


def a_trial_folder_that_is_none(path: Path) -> None:
    path.rmdir()
    path.write_text("not a folder")


@pytest.mark.parametrize("damage", [a_file_in_its_place, a_trial_folder_that_is_none])
def test_a_damaged_folder_is_one_warning(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    (tmp_path / "0001").mkdir()
    damage(tmp_path / "0001")
    log_much(TrialDir(tmp_path / "0001"))


def test_a_disk_that_fills_up_is_one_warning_and_nobody_waits(tmp_path: Path) -> None:
    """Files may not be longer than this any more, which fails a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        log_much(TrialDir(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def log_much(folder: TrialDir) -> None:
    troubles = ReportingFailures()
    with EventLog(folder, 0, troubles) as log:
        for step in range(1000):
            log.add_scalar("train/loss", 1.0, step)
            if step % 100 == 0:
                log.flush()
    (text,) = troubles.pop_unreported().values()
    assert text.endswith("The trial goes on without its events")
