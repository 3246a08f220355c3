"""A real search in which all that only reports is broken: W&B by its key, and at first the trial's proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.controller.events import Event, Notice
from orchestrator.execution import tune_run as tuner
from tests.orchestrator.execution.test_worker_pool import assert_all_is_well, make_engine_search, run_search
from tests.support.breaking_proxy import BREAKS, hold_after_breaking
from trials.console.logs import LOG_FILE

pytestmark = pytest.mark.slow


def test_neither_w_and_b_nor_who_speaks_for_a_trial_can_fail_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks, events = tmp_path / "marks", list[Event]()
    marks.mkdir()
    monkeypatch.setenv("BREAKS_IN", str(marks))
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(tuner, "run_trial_proxy", hold_after_breaking)
    run = run_search(tmp_path / "run", make_engine_search("trials=2", "concurrent_trials=1"), events.append)
    assert_all_is_well(run, trials=2)
    assert len(list(marks.iterdir())) == BREAKS
    said = [event.text for event in events if isinstance(event, Notice)]
    (about_speaking,) = [text for text in said if "the reporting process of trial 0001 failed" in text]
    assert "OSError: no more threads for who speaks" in about_speaking
    (about_tracking,) = [text for text in said if "W&B" in text]
    assert "40+ characters" in about_tracking
    assert "wandb sync" in about_tracking
    for record in run.records():
        assert "wandb sync" in (record.folder / LOG_FILE).read_text()
        assert list(record.folder.glob("wandb/offline-run-*/run-*.wandb"))
