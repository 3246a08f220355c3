"""Run folders that earlier versions made are read by this one, whole."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import check
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, Notice
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.report import render as report
from orchestrator.state.search_file import FORMAT
from orchestrator.state.selection import pick_best, rank
from tests.golden import HERE, NAMES, copy_golden
from trials.state import TrialState


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_run_folder_is_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_golden(name, tmp_path / "run")
    expected = json.loads((HERE / f"{name}.json").read_text())
    search = run.read_search()
    assert (search.recipe.name, search.full_tokens) == ("demo", expected["full_tokens"])
    trials = run.read_trials()
    assert not trials.lines()
    assert {record.id: record.best_eval_loss for record in trials.records} == expected["losses"]
    assert [record.id for record in rank(trials.records)] == expected["ranking"]
    assert pick_best(trials.records).trial.id == expected["ranking"][0]
    assert all(record.scorings and record.row_losses() for record in trials.records)
    assert ThroughputModel.from_records(trials.records).seconds_per_token() is not None
    assert check.main([str(run.path)]) == 0, capsys.readouterr().out
    assert report.main([str(run.path)]) == 0
    assert "orchestrator.check" not in (run.path / "report.html").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_search_goes_on(name: str, tmp_path: Path) -> None:
    run = copy_golden(name, tmp_path / "run")
    search = run.read_search()
    deadline = replace(search.deadline, ends=datetime.now(UTC) + timedelta(hours=1))
    events: list[Event] = []
    controller = SearchController(run, replace(search, deadline=deadline), 2, events.append)
    first = controller.suggest()
    assert isinstance(first, TrialRequest)
    assert (first.trial_id, first.resumes) == ("0002", True)
    assert not [event for event in events if isinstance(event, Notice)]
    endings = {record.id: record.ending and record.ending.kind for record in run.records()}
    assert endings == {
        "0000": TrialState.FINISHED,
        "0001": TrialState.FINISHED,
        "0002": None,
        "0003": TrialState.FINISHED,
    }


def test_the_newest_golden_run_folder_has_the_format_that_is_written() -> None:
    formats = [json.loads((HERE / name / "search.json").read_text()).get("format", 0) for name in NAMES]
    assert max(formats) == FORMAT, "the format has changed: make a golden run folder of it by tests/golden/make.py"
