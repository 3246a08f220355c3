"""A search that gives up before its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.search import main
from orchestrator.state.run_dir import RunDir
from orchestrator.supervisor.give_up import record_giving_up
from orchestrator.supervisor.supervisor import SessionExit, run_with_restarts
from tests.conftest import SMALL
from trials.errors import EXIT_GAVE_UP


def test_a_session_that_gave_up_is_not_run_again() -> None:
    sessions = []

    def session() -> int:
        sessions.append(1)
        return EXIT_GAVE_UP

    ended = run_with_restarts(session, lambda: 0, lambda: 3600.0, lambda _: None, lambda _: None)
    assert ended is SessionExit.GAVE_UP
    assert len(sessions) == 1


def test_the_command_ends_with_4_and_says_last_why_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def give_up(folder: RunDir, *_: object) -> SessionExit:
        record_giving_up(folder, "5 trials in a row failed, the last one, 0007, with: OSError: no such device")
        return SessionExit.GAVE_UP

    monkeypatch.setattr("orchestrator.search.supervise", give_up)
    run = tmp_path / "run"
    assert main(["demo", "--budget", "2h", "--out", str(run), "--set", *SMALL]) == EXIT_GAVE_UP == 4
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: the search gave up 1h5")
    assert "with: OSError: no such device. " in last
    assert last.endswith(f"python -m orchestrator.search --resume {run}")
