"""One damaged file costs one trial at most: the table of damage, through everything that reads a run folder."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import check, export, report
from orchestrator.conductor import Assignment, Conductor
from orchestrator.events import Event, Message
from orchestrator.export import _manifest
from orchestrator.forecast import predict
from orchestrator.pace import Pace
from orchestrator.ranking import pick_best
from orchestrator.run_folder import RunFolder
from orchestrator.search import main as search_main
from orchestrator.trial_folders import Trials
from tests.damage_table import BASE, REFUSED, TABLE, Kind
from tests.golden import NAMES, copy_golden
from tests.searches import begin, finish, make_conductor, run_base, run_trial
from trials.errors import NothingToExport
from trials.lock import only_here
from trials.records import EndingKind, read_trial

IDS = [kind.name for kind in TABLE]


@pytest.fixture
def golden(tmp_path: Path) -> RunFolder:
    return copy_golden(NAMES[-1], tmp_path / "run")


def resumed(run: RunFolder, events: list[Event]) -> Conductor:
    """The conductor of a session that has an hour left."""
    search = run.read_search()
    deadline = replace(search.deadline, ends=datetime.now(UTC) + timedelta(hours=1))
    return Conductor(run, replace(search, deadline=deadline), 2, events.append)


def texts(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Message))


def contents(folder: Path) -> Counter[str]:
    """What every file that can be read holds, wherever it is."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**20]
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def exported(trials: Trials, run: RunFolder) -> str | None:
    """The trial that an export would hold, whose manifest is made as well, up to the proof."""
    try:
        best = pick_best(trials.records)
    except NothingToExport:
        return None
    assert _manifest(run.read_search(), trials.records, best, {})["trial"] == best.trial.id
    return best.trial.id


@pytest.mark.parametrize("kind", TABLE, ids=IDS)
def test_who_only_reads_goes_on_without_it_and_names_it(
    golden: RunFolder, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    before = golden.read_trials()
    kind.do(golden.path)
    trials = golden.read_trials()
    assert tuple(each.id for each in trials.damaged) == kind.without
    gone = {each.id for each in before.records} - {each.id for each in trials.records} - set(kind.without)
    assert not gone or kind.name in {"a trial gone", "trials gone"}
    assert exported(trials, golden) == kind.winner
    search = golden.read_search()
    predict(search, Pace.from_records(trials.records), search.deadline.started)  # as --plan does
    assert report.main([str(golden.path)]) == 0
    assert kind.says.replace("'", "&#39;") in (golden.path / "report.html").read_text().partition("Learning curves")[0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", TABLE, ids=IDS)
def test_a_resumed_search_sets_it_aside_and_goes_on(golden: RunFolder, kind: Kind) -> None:
    kind.do(golden.path)
    left_out = kind.without if kind.set_aside is None else kind.set_aside
    events: list[Event] = []
    conductor = resumed(golden, events)
    assert sorted(path.name for path in golden.path.glob("damaged/*")) == [f"{name}-1" for name in sorted(left_out)]
    assert all(texts(events).count(f"trial {name} can't be used") == 1 for name in left_out)
    first = begin(conductor)
    assert first.trial_id not in {each for each in left_out if each != BASE}
    assert not golden.read_trials().damaged
    again: list[Event] = []
    resumed(golden, again)  # as after a crash: nothing is set aside twice
    assert "can't be used" not in texts(again)
    assert len(list(golden.path.glob("damaged/*"))) == len(left_out)


@pytest.mark.parametrize("kind", TABLE, ids=IDS)
def test_check_says_it_and_repair_deletes_nothing(
    golden: RunFolder, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    kind.do(golden.path)
    before = contents(golden.path)
    assert check.main([str(golden.path)]) == (0 if not check.check(golden) else 3)
    assert kind.says in capsys.readouterr().out
    code = check.main([str(golden.path), "--repair"])
    assert code == check.main([str(golden.path)]), capsys.readouterr().out
    assert not kind.is_mended or not any(each.problem.mend for each in check.check(golden))
    assert not before - contents(golden.path)
    capsys.readouterr()


@pytest.mark.parametrize(("do", "says"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_without_a_search_there_is_one_clear_error(
    golden: RunFolder, do: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    do(golden.path)  # type: ignore[operator]
    for main in (report.main, export.main, check.main, lambda argv: search_main(["--resume", *argv])):
        assert main([str(golden.path)]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1
