"""A worker's process without Ray: trials in threads of one process, really trained."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution import trial_runner as runner
from orchestrator.execution.channel import Finished
from orchestrator.execution.trial_runner import load_rows
from orchestrator.execution.trial_worker import TrialWorker
from search_spaces.schema import Recipe
from tests.support.cli import run_command
from tests.support.hanging_rows import Hangs
from tests.support.waiting import wait_until
from trials.data.dataset import TrialData
from trials.engine.engine import Engine
from trials.records.trial_dir import EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.disk_full import says_disk_full

pytestmark = pytest.mark.slow

Assign = Callable[..., TrialRequest]
in_either = pytest.mark.parametrize("by_trl", [False, True], ids=["engine", "trl"])


@pytest.fixture
def assign(tmp_path: Path, small_recipe: Recipe, small_data: TrialData) -> Assign:
    """A request as `orchestrator.execution.tune_adapters` makes it; keywords replace hyperparameters."""

    def of(
        trial_id: str,
        *,
        evaluations: int = 3,
        fingerprint: str = small_data.fingerprint,
        resumes: bool = False,
        by_trl: bool = False,
        **hyperparameters: Any,
    ) -> TrialRequest:
        config = small_recipe.trial_config({"learning_rate": 3e-3, "train_tokens": 1000, **hyperparameters})
        origin = Origin.BASE if trial_id == "0000" else Origin.PROPOSED
        evaluation = config.evaluation.model_copy(update={"evaluations": evaluations})
        machine = config.machine.model_copy(update={"checkpoint_evaluations": True, "keep_checkpoints": 1})
        config = config.model_copy(update={"base_eval_loss": 9.0, "evaluation": evaluation, "machine": machine})
        if not resumes:
            TrialDir(tmp_path / trial_id).begin(config, origin, "proposed")
        folder = tmp_path / trial_id
        about = {"fingerprint": fingerprint, "group": "run", "by_trl": by_trl}
        return TrialRequest(trial_id, origin, "proposed", config, folder, resumes, **about)

    return of


def is_training(folder: Path) -> bool:
    return any(folder.glob("tensorboard/events.*"))


def hold(actor: TrialWorker, trial_id: str) -> tuple[list[EvalPoint], Finished]:
    """What a proxy hears from its trial, which it always lets go on."""
    points = []
    while not isinstance(message := actor.next_message(trial_id), Finished):
        points.append(message)
        actor.resume(trial_id)
    return points, message


def hold_both(actor: TrialWorker, *trial_ids: str) -> list[tuple[list[EvalPoint], Finished]]:
    """What the proxies of trials side by side hear."""
    with ThreadPoolExecutor(len(trial_ids)) as proxies:
        return list(proxies.map(lambda trial_id: hold(actor, trial_id), trial_ids))


def test_under_trl_trials_run_one_after_another_in_one_process(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    for trial_id in ("0000", "0001", "0002"):
        actor.begin(assign(trial_id, by_trl=True))
    for trial_id, (points, ended) in zip(
        ("0000", "0001", "0002"), hold_both(actor, "0000", "0001", "0002"), strict=True
    ):
        record = read_trial(tmp_path / trial_id)
        assert ended == Finished()
        assert points == list(record.points)
        assert record.ending is not None
        assert record.ending.kind is TrialState.FINISHED
    assert actor.seconds_since_progress() is None


def test_trials_side_by_side_say_what_they_leave_on_disk(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=2, cpu_threads=1)
    for trial_id in ("0000", "0001"):
        actor.begin(assign(trial_id))
    heard = hold_both(actor, "0000", "0001")
    for trial_id, (points, ended) in zip(("0000", "0001"), heard, strict=True):
        record = read_trial(tmp_path / trial_id)
        assert ended == Finished()
        assert points == list(record.points)
        assert record.ending is not None
        assert record.ending.kind is TrialState.FINISHED
        assert record.has_adapter is (trial_id == "0001")


@in_either
def test_a_stopped_trial_gives_its_slot_away_at_once(tmp_path: Path, assign: Assign, by_trl: bool) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    actor.begin(assign("0001", train_tokens=1_000_000, evaluations=1000, by_trl=by_trl))
    assert isinstance(actor.next_message("0001"), EvalPoint)
    actor.begin(assign("0002", by_trl=by_trl))
    time.sleep(0.5)
    assert not (tmp_path / "0002" / "metrics.jsonl").exists()
    actor.release("0001")
    assert actor.next_message("0001") == Finished()
    points, _ = hold(actor, "0002")
    assert points
    stopped: TrialRecord = read_trial(tmp_path / "0001")
    assert (len(stopped.points), stopped.ending) == (1, None)  # whoever stopped it says why


@in_either
def test_a_trial_that_nobody_waits_for_leaves_in_the_middle_of_its_training(
    tmp_path: Path, assign: Assign, by_trl: bool
) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    actor.begin(assign("0001", train_tokens=1_000_000, evaluations=1, by_trl=by_trl))  # minutes
    assert wait_until(lambda: is_training(tmp_path / "0001"), 120)
    actor.release("0001")
    began = time.monotonic()
    actor.begin(assign("0002", by_trl=by_trl))
    assert hold(actor, "0002")[0]
    assert time.monotonic() - began < 30
    left: TrialRecord = read_trial(tmp_path / "0001")
    assert (left.points, left.ending) == ((), None)


def test_a_paused_trial_goes_on_from_its_checkpoint_as_if_it_had_run_through(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=2, cpu_threads=1)
    actor.begin(assign("0001", train_tokens=2500))
    through, _ = hold(actor, "0001")
    actor.begin(assign("0002", train_tokens=2500))
    points = [actor.next_message("0002")]
    actor.release("0002")
    for _ in through[1:]:
        actor.begin(assign("0002", resumes=True, train_tokens=2500))
        points.append(actor.next_message("0002"))
        actor.release("0002")
    assert len(through) == 3
    losses = [point.eval_loss for point in points if isinstance(point, EvalPoint)]
    assert losses == pytest.approx([point.eval_loss for point in through], abs=1e-6)
    assert [point.step for point in read_trial(tmp_path / "0002").points] == [point.step for point in through]


def test_a_stretch_waits_for_the_one_before_it_in_the_same_folder(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=2, cpu_threads=1)
    actor.begin(assign("0001", train_tokens=1_000_000, evaluations=1))  # minutes
    before = actor._threads["0001"]
    assert wait_until(lambda: is_training(tmp_path / "0001"), 120)
    again = replace(assign("0001", resumes=True), resumes=False)
    actor.begin(again)
    assert isinstance(actor.next_message("0001"), EvalPoint)
    assert not before.is_alive()


def test_a_trial_is_gone_when_its_release_returns(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    actor.begin(assign("0001", train_tokens=1_000_000, evaluations=1))
    assert wait_until(lambda: is_training(tmp_path / "0001"), 120)
    thread = actor._threads["0001"]
    assert thread.is_alive()
    actor.release("0001")
    assert not thread.is_alive()


def test_a_trial_that_is_to_go_on_and_has_no_checkpoint_begins_nothing(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    assign("0001")
    actor.begin(assign("0001", resumes=True))
    _, ended = hold(actor, "0001")
    assert "holds no whole checkpoint" in str(ended.error)
    assert read_trial(tmp_path / "0001").ending is None


@in_either
def test_data_that_hangs_is_seen_from_outside(assign: Assign, monkeypatch: pytest.MonkeyPatch, by_trl: bool) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    assert actor.seconds_since_progress() is None
    hangs = Hangs()
    monkeypatch.setattr(runner, "load_rows", lambda *given: hangs.instead_of(*load_rows(*given)))
    actor.begin(assign("0001", by_trl=by_trl))
    assert hangs.began.wait(60)
    time.sleep(1.5)
    silent = actor.seconds_since_progress()
    assert silent is not None
    assert silent > 1
    hangs.over.set()
    assert hold(actor, "0001")[0]
    assert actor.seconds_since_progress() is None


def test_a_process_that_is_told_to_leave_says_where_its_threads_are(tmp_path: Path) -> None:
    script = "from orchestrator.execution.trial_worker import TrialWorker\nTrialWorker(1, 1).leave()"
    found = run_command([sys.executable, "-c", script])
    assert found.returncode == 1
    assert "no progress within machine.step_limit_seconds: this process ends" in found.stderr
    assert "in leave" in found.stderr


def test_an_engine_that_takes_its_time_to_open_does_not_hang(assign: Assign, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, is_open = TrialWorker(slots=1, cpu_threads=1), threading.Event()

    def slow(*given: Any) -> Any:
        is_open.wait()
        return load_rows(*given)

    monkeypatch.setattr(runner, "load_rows", slow)
    actor.begin(assign("0001"))
    time.sleep(2.0)
    silent = actor.seconds_since_progress()
    assert silent is not None
    assert 0 < silent < 2
    is_open.set()
    assert hold(actor, "0001")[0]


def test_a_full_disk_is_no_failure_of_the_trial(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    actor.begin(assign("0001"))
    (tmp_path / "0001" / "metrics.jsonl").symlink_to("/dev/full")
    _, ended = hold(actor, "0001")
    assert "DiskFull: can't write to" in str(ended.error)
    assert says_disk_full(str(ended.error))
    assert not (tmp_path / "0001" / "ending.json").exists()


def test_a_trial_that_fails_leaves_alone(tmp_path: Path, assign: Assign) -> None:
    actor = TrialWorker(slots=2, cpu_threads=1)
    request = assign("0001")
    (tmp_path / "0001" / "adapter.new").touch()  # in the way of its first adapter
    actor.begin(request)
    actor.begin(assign("0002"))
    (_, failed), (points, ended) = hold_both(actor, "0001", "0002")
    assert "FileExistsError" in str(failed.error)
    ending = read_trial(tmp_path / "0001").ending
    assert ending is not None
    assert ending.kind is TrialState.FAILED
    assert points
    assert ended == Finished()


def test_other_rows_than_the_search_began_with_are_refused(assign: Assign) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    actor.begin(assign("0001", fingerprint="other"))
    assert "the data or the tokenizer has changed" in str(actor.next_message("0001").error)  # type: ignore[union-attr]


def test_a_trial_that_is_not_there_has_ended() -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    assert actor.next_message("0009") == Finished()
    actor.resume("0009")
    actor.release("0009")


def test_a_process_whose_engine_has_broken_down_ends(assign: Assign, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = TrialWorker(slots=1, cpu_threads=1)
    actor.begin(assign("0001"))
    hold(actor, "0001")
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    engine = actor._runner._backend
    assert isinstance(engine, Engine)
    # What no trial can be blamed for, such as a GPU that is gone.
    monkeypatch.setattr(engine._loop._micro_batcher, "check_finite", lambda: 1 / 0)
    actor.begin(assign("0002"))
    _, ended = hold(actor, "0002")
    assert ended.error is not None
    assert "the engine has broken down: ZeroDivisionError" in ended.error
    assert wait_until(lambda: bool(codes), 120)
    assert codes == [1]


@pytest.mark.parametrize(
    ("error", "ends"),
    [("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", [1]), ("a file is missing", [])],
)
@in_either
def test_a_process_whose_gpu_breaks_down_while_the_base_is_loaded_ends(
    assign: Assign, monkeypatch: pytest.MonkeyPatch, error: str, ends: list[int], by_trl: bool
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError(error)

    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr("trials.engine.engine.Engine.__init__", breaks)
    monkeypatch.setattr("trials.trl.backend.load_base", breaks)
    actor = TrialWorker(slots=1, cpu_threads=1)
    actor.begin(assign("0001", by_trl=by_trl))
    assert error in str(actor.next_message("0001").error)  # type: ignore[union-attr]
    actor._threads["0001"].join(120)
    assert codes == ends
