"""Trials of a run folder on a store, in processes to whom the search's own machine shows nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.trial_runner import TrialRunner
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.working_copy import RemoteTrial
from search_spaces.schema import Recipe
from tests.support.process_pool import Together
from trials.console.logs import LOG_FILE
from trials.data.dataset import TrialData
from trials.records.trial_dir import EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.distributed import ALONE, ProcessGroup
from trials.training.training_run import Decision

pytestmark = pytest.mark.slow

NEAR = 1e-5
_runners: list[TrialRunner] = []


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the processes that train have their copies of trials."""
    environment, path = pytest.MonkeyPatch(), tmp_path_factory.mktemp("caches")
    environment.setenv("XDG_CACHE_HOME", str(path))
    yield path
    environment.undo()


@pytest.fixture(scope="module")
def pair(caches: Path) -> Iterator[Together]:
    together = Together(2)
    yield together
    together.close()


class Handed:
    """One trial as a controller hands it out: it's on the store, and its worker knows of nothing but that."""

    def __init__(self, path: Path, recipe: Recipe, data: TrialData) -> None:
        self._mirror = Mirror(f"file://{path / 'store'}", path / "working-copy")
        self._mirror.begin()
        config = recipe.trial_config({"learning_rate": 3e-3, "train_tokens": 2000})
        machine = config.machine.model_copy(update={"checkpoint_evaluations": True, "keep_checkpoints": 1})
        self._config = config.model_copy(update={"base_eval_loss": 9.0, "machine": machine})
        self._fingerprint = data.fingerprint
        self._folder = self._mirror.path / "trials" / "0001"
        TrialDir(self._folder).begin(self._config, Origin.PROPOSED, "proposed", data.fingerprint)

    def run(self, work: Callable[[TrialRequest, int], Any], *, owner: str, stop_at_evaluation: int) -> TrialRecord:
        """One segment of it; what the search's machine knows then, which has no weights."""
        self._mirror.grant(self._folder, owner)
        request = TrialRequest(
            "0001",
            Origin.PROPOSED,
            "proposed",
            self._config,
            Path("/nowhere/trials/0001"),
            resumes=bool(read_trial(self._folder).points),
            remote=RemoteTrial(self._mirror.store.url, "trials/0001", owner),
            fingerprint=self._fingerprint,
            group="run",
        )
        work(request, stop_at_evaluation)
        self._mirror.revoke(self._folder, owner)
        return read_trial(self._folder)


def train(ranks: ProcessGroup, request: TrialRequest, stop_at_evaluation: int) -> list[float]:
    """A rank's part of one segment; the losses that it heard of."""
    if not _runners:
        _runners.append(TrialRunner(1, ranks))
    losses: list[float] = []

    def on_eval(point: EvalPoint) -> Decision:
        losses.append(point.eval_loss)
        return Decision.STOP if len(losses) == stop_at_evaluation else Decision.CONTINUE

    _runners[0].run(request, on_eval, lambda: False, lambda _: None)
    return losses


def alone(request: TrialRequest, stop_at_evaluation: int) -> None:
    train(ALONE, request, stop_at_evaluation)


def test_two_processes_with_a_copy_each_train_as_one(
    tmp_path: Path, small_recipe: Recipe, small_data: TrialData, caches: Path, pair: Together
) -> None:
    heard: list[list[list[float]]] = []

    def both(request: TrialRequest, stop_at_evaluation: int) -> None:
        heard.append(pair.run(train, request, stop_at_evaluation))

    records = {}
    for name, work in (("alone", alone), ("both", both)):
        trial = Handed(tmp_path / name, small_recipe, small_data)
        stopped = trial.run(work, owner="first", stop_at_evaluation=1)
        assert (len(stopped.points), stopped.ending) == (1, None)
        records[name] = trial.run(work, owner="second", stop_at_evaluation=9)
    losses = {name: [point.eval_loss for point in record.points] for name, record in records.items()}
    assert len(losses["alone"]) == 3
    assert losses["both"] == pytest.approx(losses["alone"], abs=NEAR, rel=0)
    assert heard == [[losses["both"][:1], []], [losses["both"][1:], []]]  # the first is asked for both
    assert [point.ranks for point in records["both"].points] == [2, 2, 2]
    for record in records.values():
        assert record.ending is not None
        assert record.ending.kind is TrialState.FINISHED
    assert not list(caches.glob("qlora-orchestrator/trials/*/*"))


def test_what_a_trial_says_elsewhere_is_in_the_run_folder(
    tmp_path: Path, small_recipe: Recipe, small_data: TrialData, caches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trial = Handed(tmp_path, small_recipe, small_data)
    trial.run(alone, owner="first", stop_at_evaluation=1)
    record = trial.run(alone, owner="second", stop_at_evaluation=9)
    said = (record.folder / LOG_FILE).read_text()
    assert [" begins in process " in said, " goes on in process " in said] == [True, True]
    assert said.count("eval loss") == len(record.points)
    assert said.splitlines()[-1].endswith(f"trial 0001: finished: {record.ending.reason}" if record.ending else "")
