"""One damaged file costs one trial at most: the table of damage, through everything that reads a run folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from orchestrator import check
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, Notice
from orchestrator.controller.study import StudyRecorder
from orchestrator.export import exporter as export
from orchestrator.export.exporter import _manifest
from orchestrator.planning.forecast import forecast_search
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.report import render as report
from orchestrator.search import main as search_main
from orchestrator.state.run_dir import RunDir
from orchestrator.state.selection import pick_best
from orchestrator.state.trial_folders import Trials
from tests.golden import NAMES, copy_golden
from tests.support.damage_table import BASE, REFUSED, TABLE, Kind
from tests.support.fake_search import begin, finish
from trials.errors import NothingToExport
from trials.state import TrialState
from trials.system.locks import exclusive_lock

pytestmark = pytest.mark.slow

IDS = [kind.name for kind in TABLE]


@pytest.fixture
def golden(tmp_path: Path) -> RunDir:
    return copy_golden(NAMES[-1], tmp_path / "run")


def resumed(run: RunDir, events: list[Event]) -> SearchController:
    """The controller of a session that has an hour left."""
    search = run.read_search()
    deadline = replace(search.deadline, ends=datetime.now(UTC) + timedelta(hours=1))
    return SearchController(run, replace(search, deadline=deadline), 2, events.append)


def texts(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


def contents(folder: Path) -> Counter[str]:
    """What every file that can be read holds, wherever it is."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**20]
    return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def exported(trials: Trials, run: RunDir) -> str | None:
    """The trial that an export would hold, whose manifest is made as well, up to the proof."""
    try:
        best = pick_best(trials.records)
    except NothingToExport:
        return None
    assert _manifest(run.read_search(), trials.records, best, {})["trial"] == best.trial.id
    return best.trial.id


@pytest.mark.parametrize("kind", TABLE, ids=IDS)
def test_who_only_reads_goes_on_without_it_and_names_it(
    golden: RunDir, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    before = golden.read_trials()
    kind.do(golden.path)
    trials = golden.read_trials()
    assert tuple(each.id for each in trials.damaged) == kind.without
    gone = {each.id for each in before.records} - {each.id for each in trials.records} - set(kind.without)
    assert not gone or kind.name in {"a trial gone", "trials gone"}
    assert exported(trials, golden) == kind.winner
    search = golden.read_search()
    forecast_search(search, ThroughputModel.from_records(trials.records), search.deadline.started)  # as --plan does
    assert report.main([str(golden.path)]) == 0
    assert kind.says.replace("'", "&#39;") in (golden.path / "report.html").read_text().partition("Learning curves")[0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", TABLE, ids=IDS)
def test_a_resumed_search_sets_it_aside_and_goes_on(golden: RunDir, kind: Kind) -> None:
    kind.do(golden.path)
    left_out = kind.without if kind.set_aside is None else kind.set_aside
    events: list[Event] = []
    controller = resumed(golden, events)
    assert sorted(path.name for path in golden.path.glob("damaged/*")) == [f"{name}-1" for name in sorted(left_out)]
    assert all(texts(events).count(f"trial {name} can't be used") == 1 for name in left_out)
    first = begin(controller)
    assert first.trial_id not in {each for each in left_out if each != BASE}
    assert not golden.read_trials().damaged
    if left_out:  # as after a crash: nothing is set aside twice
        again: list[Event] = []
        resumed(golden, again)
        assert "can't be used" not in texts(again)
        assert len(list(golden.path.glob("damaged/*"))) == len(left_out)


@pytest.mark.parametrize("kind", TABLE, ids=IDS)
def test_check_says_it_and_repair_deletes_nothing(
    golden: RunDir, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    kind.do(golden.path)
    before = contents(golden.path)
    assert check.main([str(golden.path)]) == 3 or not kind.says
    assert kind.says in capsys.readouterr().out
    assert contents(golden.path) == before
    code = check.main([str(golden.path), "--repair"])
    left = check.check(golden)
    assert code == (3 if left else 0)
    assert not any(each.problem.mend for each in left)
    assert not before - contents(golden.path)


@pytest.mark.parametrize(("do", "says"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_without_a_search_there_is_one_clear_error(
    golden: RunDir, do: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    do(golden.path)  # type: ignore[operator]
    for main in (report.main, export.main, check.main, lambda argv: search_main(["--resume", *argv])):
        assert main([str(golden.path)]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.startswith("error: ")
        assert len(said.splitlines()) == 1


def test_plan_names_what_resume_would_set_aside(golden: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(golden.trial("0003"), golden.path / "trials" / "0003 copy")
    (golden.trial("0001") / "eval_rows.json").write_text("{")
    assert search_main(["--resume", str(golden.path), "--plan", "--budget", "1h"]) in (0, 2)  # 2: too small a machine
    said = capsys.readouterr().out
    assert "trial 0003 copy is left out: its name is no number of a trial" in said
    assert "trial 0001: eval_rows.json can't be read" in said
    assert (golden.path / "trials" / "0003 copy").exists()


def test_a_lost_starting_point_is_begun_again_under_another_number(golden: RunDir) -> None:
    (golden.trial("0001") / "config.json").write_text("")
    controller = resumed(golden, [])
    begun = [begin(controller) for _ in range(2)]
    assert ("0004", "usual") in {(each.trial_id, each.name) for each in begun}


def test_an_id_that_was_set_aside_is_given_to_no_other_trial_also_by_a_new_study(golden: RunDir) -> None:
    (golden.trial("0003") / "config.json").write_text("")
    (golden.path / "study.db").unlink()
    search = golden.read_search()
    more = search.recipe.search.model_copy(update={"trials": 9})
    golden.write_search(replace(search, recipe=search.recipe.model_copy(update={"search": more})))
    controller = resumed(golden, [])
    assert {begin(controller).trial_id for _ in range(2)} <= {"0002", "0004", "0005"}


def test_a_trial_that_is_damaged_while_it_runs_ends_alone(golden: RunDir) -> None:
    events: list[Event] = []
    controller = resumed(golden, events)
    running = begin(controller)
    (running.folder / "config.json").write_text("")
    controller.on_trial_end(running.trial_id)
    controller.on_idle()
    assert (golden.path / "damaged" / f"{running.trial_id}-1" / "metrics.jsonl").exists()
    assert controller.suggest() in ("over", "wait")


def test_check_needs_the_run_folder_for_itself_to_repair(golden: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive_lock(golden.path):
        assert check.main([str(golden.path), "--repair"]) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_check_compares_adapters_and_export_with_their_hashes(
    golden: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(golden.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"]
    adapter = golden.trial("0003") / "adapter"
    files = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in adapter.glob("adapter_*")
    }
    point = {**json.loads((adapter / "point.json").read_text()), "files": files}
    (adapter / "point.json").write_text(json.dumps(point))
    assert not check.check(golden)
    for weights in (adapter / "adapter_model.safetensors", golden.export / "adapter_model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert check.main([str(golden.path), "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert [each["where"] for each in said["problems"]] == ["trials/0003", "export"]
    assert all("its SHA-256 differs" in each["what"] for each in said["problems"])
    assert check.main([str(golden.path), "--repair"]) == 3  # the export is made again by its own command
    assert (golden.path / "damaged" / "0003-adapter-1" / "adapter_model.safetensors").exists()


def locked(run: RunDir, how: str) -> sqlite3.Connection:
    """Another program, such as a database browser, that holds study.db: with a change not written yet, or all of it.

    The folder's own study is of an earlier version, and would be made anew.
    """
    StudyRecorder(run, run.read_search().recipe, run.records(), print)
    for aside in run.path.glob("study.db.broken*"):
        aside.unlink()
    browser = sqlite3.connect(run.path / "study.db", isolation_level=None)
    browser.execute(f"BEGIN {how}")
    return browser


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_locked_study_holds_nothing_up_and_is_told_later(golden: RunDir, how: str) -> None:
    browser = locked(golden, how)
    events: list[Event] = []
    controller = resumed(golden, events)
    open_trial = begin(controller)
    finish(golden, controller, open_trial, TrialState.FINISHED)
    assert controller.suggest() == "over"
    controller.close()
    assert texts(events).count("another program holds study.db") == 1
    assert not list(golden.path.glob("study.db.broken*"))
    browser.rollback()
    resumed(golden, events)
    study = optuna.load_study(study_name=None, storage=golden.study_url)
    assert [trial.state for trial in study.trials[1:]] == [OptunaState.COMPLETE] * 3


def test_a_study_that_is_free_again_is_told_at_the_end(golden: RunDir) -> None:
    browser = locked(golden, "EXCLUSIVE")
    controller = resumed(golden, [])
    finish(golden, controller, begin(controller), TrialState.FINISHED)
    browser.rollback()
    assert controller.suggest() == "over"
    controller.close()
    study = optuna.load_study(study_name=None, storage=golden.study_url)
    assert [trial.state for trial in study.trials[1:]] == [OptunaState.COMPLETE] * 3


def test_report_and_check_do_not_wait_for_a_locked_study(golden: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    browser = locked(golden, "EXCLUSIVE")
    assert report.main([str(golden.path)]) == 0
    assert check.main([str(golden.path)]) == 3
    assert "study.db: another program holds it" in capsys.readouterr().out
    browser.close()


def test_a_folder_in_the_place_of_the_lock_is_one_clear_error(
    golden: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    (golden.path / "lock").mkdir()
    assert check.main([str(golden.path), "--repair"]) == 2
    assert "lock is no file, so nobody can tell who is at work there. Remove it." in capsys.readouterr().err
