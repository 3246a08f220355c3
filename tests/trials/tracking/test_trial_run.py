"""Weights & Biases only when the environment asks for it, by the real wandb, and never at the trial's cost."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_until
from tests.support.wandb_server import KEY, WandbServer, wandb_server
from trials.config import TrackingSettings, TrialConfig
from trials.console.logs import LOG_FILE, trial_log
from trials.console.troubles import ReportingFailures
from trials.tracking.tracker import Limits, Outage, TrackedRun, Tracker, TrackingError, check_key, end_idle_processes
from trials.tracking.trial_run import wandb_is_wanted, wandb_run

pytestmark = pytest.mark.slow

HASTY = Limits(silence=8.0, farewell=120.0)
PATIENT = Limits(start=120.0, silence=120.0, farewell=120.0)


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings of a user's, and after a test no process of it that tracks."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    end_idle_processes()
    assert psutil.wait_procs(tracking_processes(), timeout=60)[1] == []


def tracking_processes() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if re.search(r"/tracker_process\.py|/wandb/bin/", _command(process))]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def ask_for(environment: pytest.MonkeyPatch, url: str, key: str = KEY) -> None:
    environment.setenv("WANDB_API_KEY", key)
    environment.setenv("WANDB_BASE_URL", url)


def tracked(folder: Path, **changes: str) -> TrackedRun:
    folder.mkdir(parents=True, exist_ok=True)
    return TrackedRun(str(folder), "p", "night", "night/0001", changes.get("id", "abcd1234"), None, {"a": 1})


def logged(folder: Path, kind: str, name: str) -> int:
    """How often W&B's log on disk has a figure."""
    return sum(file.read_bytes().count(name.encode()) for file in folder.glob(f"wandb/{kind}-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("mode", "key", "wanted"),
    [
        (None, None, False),
        (None, "abc", True),
        ("online", "abc", True),
        ("online", None, False),
        ("offline", None, True),
        ("disabled", "abc", False),
    ],
)
def test_a_key_or_offline_mode_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, mode: str | None, key: str | None, wanted: bool
) -> None:
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert wandb_is_wanted(TrackingSettings()) == wanted
    assert not wandb_is_wanted(TrackingSettings(wandb=False))


def test_nothing_is_written_or_started_unasked(
    tmp_path: Path, small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with wandb_run(tmp_path, small_config, "search") as log:
        log({"eval/loss": 1.0})
        assert tracking_processes() == []
    assert not list(tmp_path.iterdir())


def test_offline_a_trial_that_goes_on_does_so_in_its_own_run_which_is_named_after_it(
    tmp_path: Path, small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, other = tmp_path / "0007", tmp_path / "0008"
    for folder in (first, other):
        folder.mkdir()
    ids = [_id_of_run(folder, small_config) for folder in (first, first, other)]
    assert ids[0] == ids[1] == (first / "wandb_run").read_text().strip()
    assert ids[2] != ids[0]
    named = small_config.model_copy(update={"tracking": TrackingSettings(run_id="chosen")})
    assert _id_of_run(first, named) == "chosen"
    assert _id_of_run(first, small_config) == "chosen"
    said = b"".join(file.read_bytes() for file in first.glob("wandb/offline-run-*/run-*.wandb"))
    assert b"night/0007" in said
    assert b"learning_rate" in said


def _id_of_run(folder: Path, config: TrialConfig) -> str:
    before = set(folder.glob("wandb/offline-run-*"))
    with wandb_run(folder, config, "night") as log:
        log({"eval/loss": 1.0})
    (found,) = set(folder.glob("wandb/offline-run-*")) - before
    return found.name.split("-")[3]  # two in one second have a number after it


def test_an_id_that_cannot_be_kept_or_read_is_no_trouble_of_the_trial(
    tmp_path: Path, small_config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "wandb_run").write_bytes(b"\xff\x00/../")
    _id_of_run(tmp_path, small_config)
    (tmp_path / "wandb_run").unlink()
    (tmp_path / "wandb_run").mkdir()
    _id_of_run(tmp_path, small_config)


def test_figures_reach_a_server_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles = ReportingFailures()
    with wandb_server("well") as server:
        ask_for(monkeypatch, server.url)
        assert check_key(60) == server.url
        tracker = Tracker(tracked(tmp_path), online=True, outage=Outage(), troubles=troubles)
        for step in (1, 2, 3):
            tracker.log({"train/loss": 1 / step, "train/global_step": step})
        tracker.close(120)
    assert sum('"train/loss"' in line for line in server.logged) == 3
    assert troubles.pop_unreported() == {}


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("refuses", "connection refused|said nothing"),
        ("silent", "Timed out|said nothing"),
        ("401", "user is not logged in"),
        ("500", "HTTP 500|said nothing"),
        ("garbage", "invalid character"),
        ("wrong key", "40\\+ characters, has 3"),
    ],
)
def test_a_trial_is_logged_offline_with_one_warning_where_the_server_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str, said: str
) -> None:
    troubles, outage, folder = ReportingFailures(), Outage(), tmp_path / "0001"
    monkeypatch.setattr(logging.getLogger("trials"), "level", logging.INFO)
    with wandb_server(manner) as server:
        ask_for(monkeypatch, server.url, "abc" if manner == "wrong key" else KEY)
        if manner == "refuses":
            server.server_close()
        with trial_log(folder):
            tracker = Tracker(tracked(folder), online=True, limits=HASTY, outage=outage, troubles=troubles)
            for step in range(50):
                tracker.log({"train/loss": 1.0, "train/global_step": step})
            assert wait_until((folder / LOG_FILE).exists, 120)  # the warning comes while the trial trains
            tracker.close(120)
    (line,) = (folder / LOG_FILE).read_text().splitlines()
    assert re.search(said, line)
    assert re.search(r"WARNING W&B: .* upload it with: wandb sync \S+/wandb/offline-run-\S+$", line)
    assert list(troubles.pop_unreported()) == ["W&B"]
    assert logged(folder, "offline-run", "train/loss") == 2 * 50  # in the history, and as the newest
    assert outage.is_on


def test_a_trial_does_not_wait_for_what_is_silent_and_the_next_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles, outage = ReportingFailures(), Outage()
    with wandb_server("silent") as server:
        ask_for(monkeypatch, server.url)
        first = Tracker(tracked(tmp_path / "1"), online=True, limits=PATIENT, outage=outage, troubles=troubles)
        assert wait_until(lambda: "UpsertBucket" in server.asked, 120)
        first.log({"train/loss": 1.0})
        first.close(0.5)  # the trial has ended already
        assert "after the trial's end" in troubles.pop_unreported()["W&B"]
        server.asked.clear()
        second = Tracker(tracked(tmp_path / "2"), online=True, outage=outage, troubles=troubles)
        second.log({"train/loss": 1.0})
        second.close(120)
        assert "UpsertBucket" not in server.asked
    assert "some minutes ago" in troubles.pop_unreported()["W&B"]
    for folder in ("1", "2"):
        assert logged(tmp_path / folder, "offline-run", "train/loss")


def test_a_server_that_falls_silent_in_mid_run_leaves_all_of_it_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles = ReportingFailures()
    with _begun(tmp_path, monkeypatch, troubles) as (server, tracker):
        server.manner = "silent"
        for step in range(1, 50):
            tracker.log({"train/loss": 1.0, "train/global_step": step})
        tracker.close(10)
    said = troubles.pop_unreported()["W&B"]
    assert re.search(r"after the trial's end.* wandb sync \S+/wandb/run-\S+$", said)
    assert logged(tmp_path, "run", "train/loss") >= 50
    assert not list(tmp_path.glob("wandb/offline-run-*"))


@contextmanager
def _begun(
    path: Path, monkeypatch: pytest.MonkeyPatch, troubles: ReportingFailures
) -> Iterator[tuple[WandbServer, Tracker]]:
    """Tracking of which a server that is well has the first figures."""
    with wandb_server("well") as server:
        ask_for(monkeypatch, server.url)
        tracker = Tracker(tracked(path), online=True, limits=PATIENT, outage=Outage(), troubles=troubles)
        tracker.log({"train/loss": 1.0, "train/global_step": 0})
        assert wait_until(lambda: bool(server.logged), 120)
        yield server, tracker


def test_what_logs_may_die_and_what_it_had_not_logged_is_logged_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles = ReportingFailures()
    with _begun(tmp_path, monkeypatch, troubles) as (_, tracker):
        for process in tracking_processes():
            process.kill()
        tracker.log({"train/later": 1.0, "train/global_step": 1})
        tracker.close(120)
    said = troubles.pop_unreported()["W&B"]
    assert "its process ended with signal 9" in said
    assert re.search(r"wandb sync \S+/wandb/run-\S+ \S+/wandb/offline-run-\S+$", said)
    assert logged(tmp_path, "offline-run", "train/later")


def test_the_oldest_figures_of_too_many_are_dropped_which_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles = ReportingFailures()
    with wandb_server("silent") as server:
        ask_for(monkeypatch, server.url)
        limits = Limits(silence=8.0, entries=20)
        tracker = Tracker(tracked(tmp_path), online=True, limits=limits, outage=Outage(), troubles=troubles)
        for step in range(50):
            tracker.log({f"train/loss-{step}": 1.0})
        tracker.close(120)
    assert "more than 20 figures wait" in troubles.pop_unreported()["W&B"]
    assert not logged(tmp_path, "offline-run", "train/loss-29")
    assert logged(tmp_path, "offline-run", "train/loss-30")


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("refuses", "can't be reached: .*refused"),
        ("silent", "can't be reached: .*timed out|said nothing"),
        ("401", r"doesn't know the key in WANDB_API_KEY \(HTTP 401\)"),
        ("500", "answers with HTTP 500"),
        ("garbage", "doesn't answer as W&B does"),
        ("wrong key", "40\\+ characters, has 3"),
    ],
)
def test_the_check_of_the_key_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, manner: str, said: str) -> None:
    with wandb_server(manner) as server:
        ask_for(monkeypatch, server.url, "abc" if manner == "wrong key" else KEY)
        if manner == "refuses":
            server.server_close()
        began = time.monotonic()
        with pytest.raises(TrackingError, match=said):
            check_key(8 if manner == "silent" else 60)
        if manner == "silent":
            assert time.monotonic() - began < 30  # however busy the machine
