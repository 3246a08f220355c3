"""The engine's process without Ray: trials in threads of one process, really trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.conversation import Ended
from orchestrator.engine_actor import EngineActor
from search_spaces.schema import Recipe
from trials.data import TrialData
from trials.records import EndingKind, EvalPoint, Origin, TrialFolder, TrialRecord, read_trial

Assign = Callable[..., dict[str, Any]]


@pytest.fixture
def assign(tmp_path: Path, small_recipe: Recipe, small_data: TrialData) -> Assign:
    """An assignment as `orchestrator.tuner` makes it; keywords replace hyperparameters."""

    def of(
        trial_id: str, *, evaluations: int = 3, fingerprint: str = small_data.fingerprint, **hyperparameters: Any
    ) -> dict[str, Any]:
        config = small_recipe.trial_config({"learning_rate": 3e-3, "train_tokens": 1000, **hyperparameters})
        origin = Origin.BASE if trial_id == "0000" else Origin.PROPOSED
        evaluation = config.evaluation.model_copy(update={"evaluations": evaluations})
        config = config.model_copy(update={"base_eval_loss": 9.0, "evaluation": evaluation})
        TrialFolder(tmp_path / trial_id).begin(config, origin, "proposed")
        return {
            "trial_id": trial_id,
            "origin": origin.value,
            "config": config.model_dump_json(),
            "folder": str(tmp_path / trial_id),
            "group": "night",
            "fingerprint": fingerprint,
            "stop_at": math.inf,
        }

    return of


def hold(actor: EngineActor, trial_id: str) -> tuple[list[EvalPoint], Ended]:
    """What a holder hears from its trial, which it always lets go on."""
    points = []
    while not isinstance(word := actor.next_word(trial_id), Ended):
        points.append(word)
        actor.go_on(trial_id)
    return points, word


def hold_both(actor: EngineActor, *trial_ids: str) -> list[tuple[list[EvalPoint], Ended]]:
    """What the holders of trials side by side hear."""
    with ThreadPoolExecutor(len(trial_ids)) as holders:
        return list(holders.map(lambda trial_id: hold(actor, trial_id), trial_ids))


def test_trials_side_by_side_say_what_they_leave_on_disk(tmp_path: Path, assign: Assign) -> None:
    actor = EngineActor(slots=2, cpu_threads=1)
    for trial_id in ("0000", "0001"):
        actor.begin(assign(trial_id))
    heard = hold_both(actor, "0000", "0001")
    for trial_id, (points, ended) in zip(("0000", "0001"), heard, strict=True):
        record = read_trial(tmp_path / trial_id)
        assert ended == Ended()
        assert points == list(record.points)
        assert record.ending is not None
        assert record.ending.kind is EndingKind.FINISHED
        assert record.has_adapter is (trial_id == "0001")


def test_a_stopped_trial_gives_its_slot_away_at_once(tmp_path: Path, assign: Assign) -> None:
    actor = EngineActor(slots=1, cpu_threads=1)
    actor.begin(assign("0001", train_tokens=1_000_000, evaluations=1000))
    assert isinstance(actor.next_word("0001"), EvalPoint)
    actor.begin(assign("0002"))
    time.sleep(0.5)
    assert not (tmp_path / "0002" / "metrics.jsonl").exists()
    actor.release("0001")
    assert actor.next_word("0001") == Ended()
    points, _ = hold(actor, "0002")
    assert points
    stopped: TrialRecord = read_trial(tmp_path / "0001")
    assert (len(stopped.points), stopped.ending) == (1, None)  # whoever stopped it says why


def test_a_trial_that_nobody_waits_for_leaves_in_the_middle_of_its_training(tmp_path: Path, assign: Assign) -> None:
    actor = EngineActor(slots=1, cpu_threads=1)
    actor.begin(assign("0001", train_tokens=1_000_000, evaluations=1))  # minutes
    while not list((tmp_path / "0001").glob("tensorboard/events.*")):
        time.sleep(0.05)
    actor.release("0001")
    began = time.monotonic()
    actor.begin(assign("0002"))
    assert hold(actor, "0002")[0]
    assert time.monotonic() - began < 30
    left: TrialRecord = read_trial(tmp_path / "0001")
    assert (left.points, left.ending) == ((), None)


def test_a_trial_that_fails_leaves_alone(tmp_path: Path, assign: Assign) -> None:
    actor = EngineActor(slots=2, cpu_threads=1)
    assignment = assign("0001")
    (tmp_path / "0001" / "adapter.new").touch()  # in the way of its first adapter
    actor.begin(assignment)
    actor.begin(assign("0002"))
    (_, failed), (points, ended) = hold_both(actor, "0001", "0002")
    assert "FileExistsError" in str(failed.error)
    ending = read_trial(tmp_path / "0001").ending
    assert ending is not None
    assert ending.kind is EndingKind.FAILED
    assert points
    assert ended == Ended()


def test_other_rows_than_the_search_began_with_are_refused(assign: Assign) -> None:
    actor = EngineActor(slots=1, cpu_threads=1)
    actor.begin(assign("0001", fingerprint="other"))
    assert "the data or the tokenizer has changed" in str(actor.next_word("0001").error)  # type: ignore[union-attr]


def test_a_trial_that_is_not_there_has_ended() -> None:
    actor = EngineActor(slots=1, cpu_threads=1)
    assert actor.next_word("0009") == Ended()
    actor.go_on("0009")
    actor.release("0009")


def test_a_process_whose_engine_has_broken_down_ends(assign: Assign, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = EngineActor(slots=1, cpu_threads=1)
    actor.begin(assign("0001"))
    hold(actor, "0001")
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    assert actor._engine is not None
    # What no trial can be blamed for, such as a GPU that is gone.
    monkeypatch.setattr(actor._engine._loop._micro_steps, "look_at_figures", lambda: 1 / 0)
    actor.begin(assign("0002"))
    _, ended = hold(actor, "0002")
    assert ended.error is not None
    assert "the engine has broken down: ZeroDivisionError" in ended.error
    for _ in range(100):
        if codes:
            break
        time.sleep(0.05)
    assert codes == [1]
