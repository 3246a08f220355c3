"""The end of a search's command where there's nothing that is worth exporting: real folders, made-up losses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.state.clock import SteadyClock
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.supervisor.finalize import finalize
from tests.support.fake_search import BASE_LOSS, START, make_controller, make_run, run_base, run_trial
from trials.errors import EXIT_INTERRUPTED, EXIT_NOTHING_TO_EXPORT


@pytest.fixture
def run(tmp_path: Path, search: Search) -> RunDir:
    """Of a search whose only trial is no better than the base model."""
    run = make_run(tmp_path / "run", search)
    controller = make_controller(run, search)
    run_base(run, controller)
    run_trial(run, controller, [(300, BASE_LOSS + 0.1), (900, BASE_LOSS)])
    return run


@pytest.mark.parametrize(("interrupted", "code"), [(False, EXIT_NOTHING_TO_EXPORT), (True, EXIT_INTERRUPTED)])
def test_without_a_better_adapter_nothing_is_exported(
    run: RunDir, interrupted: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finalize(run, SteadyClock(is_time_of_day=False, wall=START.timestamp), interrupted=interrupted) == code
    said = capsys.readouterr()
    assert "nothing exported: the best trial, 0001, has eval loss 3.0" in said.err
    assert f"report: {run.path / 'report.html'}" in said.out
    assert ("go on: " in said.out) is interrupted
    assert "adapter: " not in said.out
    assert not run.export.exists()
    assert (run.path / "report.html").is_file()


def test_a_report_that_fails_for_an_unforeseen_reason_is_one_line_and_costs_nothing_else(
    run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "orchestrator.report.render", None)  # as where plotly isn't installed
    assert _finish(run) == EXIT_NOTHING_TO_EXPORT
    said = capsys.readouterr()
    assert "nothing exported: the best trial, 0001, has eval loss" in said.err
    (warning,) = [line for line in said.err.splitlines() if line.startswith("warning: no report: ModuleNotFoundError")]
    assert "The traceback is in logs/search.log" in warning
    assert "Traceback" not in said.err + said.out
    assert "Traceback" in (run.logs / "search.log").read_text()


def test_an_export_that_fails_for_an_unforeseen_reason_costs_no_report(
    run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "orchestrator.export.exporter", None)
    assert _finish(run) == 1
    said = capsys.readouterr()
    assert "nothing exported: ModuleNotFoundError: " in said.err
    assert "Traceback" not in said.err + said.out
    assert "Traceback" in (run.logs / "search.log").read_text()
    assert f"report: {run.path / 'report.html'}" in said.out
    assert (run.path / "report.html").is_file()


def _finish(run: RunDir) -> int:
    return finalize(run, SteadyClock(is_time_of_day=False, wall=START.timestamp), interrupted=False)
