"""Groups of processes under Ray: two on the CPU, which take trial after trial, and are stopped, hung and killed."""

from __future__ import annotations

import logging
import os
import signal
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from ray.util import placement_group_table

from benchmarks.system.group_switching import change_trials, open_groups, wait_until
from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, TrialEvaluated
from orchestrator.execution import tune_run as tuner
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement
from tests.orchestrator.execution.test_worker_pool import assert_all_is_well, make_engine_search
from tests.support.fake_search import make_run
from trials.system.processes import is_alive

pytestmark = pytest.mark.cluster

RANKS = 2
STEP_LIMIT_SECONDS = 20
STOPS = 8
GONE_SECONDS = 5.0
"""After which a stopped trial must have given its GPUs back."""


def write_recipe(folder: Path) -> Path:
    """The demo's, judged on few rows."""
    recipe = {
        "extends": "demo",
        "data": {"eval_rows": 12, "test_rows": 8},
        "hyperparameters": {"train_tokens": None, "rows_seen": 1600},
    }
    path = folder / "changes.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_trials_that_are_stopped_one_after_another_give_their_group_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = change_trials(write_recipe(tmp_path), tmp_path, STOPS, RANKS)
    gone, next_ = found["gone"], found["next"]
    with capsys.disabled():
        print(f"\n{STOPS} stopped: gone after {_said(gone)}; the next one's first evaluation after {_said(next_)}")
    assert len(gone) == len(next_) == STOPS
    assert max(gone) <= GONE_SECONDS


def _said(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s, {max(seconds):.2f} at most"


def group_process() -> int:
    actor = ray.get_actor("engine-0")
    return int(ray.get(actor.ready.options(max_task_retries=-1).remote()))


def rank_processes() -> list[int]:
    """Those of this test's Ray, the oldest first."""
    processes = psutil.Process().children(recursive=True)
    ranks = [process for process in processes if "RayTrainWorker" in " ".join(process.cmdline())]
    return [process.pid for process in sorted(ranks, key=psutil.Process.create_time)]


def reserved_for_ranks() -> int:
    """Placement groups for as many processes as train a trial; Tune has others, for its proxies."""
    table = placement_group_table()
    return sum(len(table[name]["bundles"]) == RANKS for name in open_groups())


@dataclass
class RankAccidents:
    """Listens to a search, and does to a process what it's told to, at a trial's first evaluation."""

    at: dict[str, tuple[Callable[[], int], signal.Signals]]
    groups: dict[str, int] = field(default_factory=dict)
    """The group's process at every trial's first evaluation."""

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TrialEvaluated):
            return
        self.groups.setdefault(event.trial_id, group_process())
        wait_until(lambda: reserved_for_ranks() == 1)  # what a group had that was killed is given back
        victim, number = self.at.pop(event.trial_id, (None, signal.SIGKILL))
        if victim is not None:
            os.kill(victim(), number)


class Warnings(logging.Handler):
    """Keeps what the search warns of, and when: seconds since the epoch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.created, record.getMessage()))


@dataclass(frozen=True)
class Survived:
    """What came of a search with accidents."""

    run: RunDir
    accidents: RankAccidents
    left: list[str]
    """The placement groups that were still there at its end."""
    warnings: list[tuple[float, str]]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Survived:
    """A search of five trials in one group: a rank hangs, a rank is killed, the group's own process is, and hangs."""
    accidents = RankAccidents(
        {
            "0001": (lambda: rank_processes()[-1], signal.SIGSTOP),
            "0002": (lambda: rank_processes()[0], signal.SIGKILL),
            "0003": (group_process, signal.SIGKILL),
            "0004": (group_process, signal.SIGSTOP),
        }
    )
    settings = (f"machine.step_limit_seconds={STEP_LIMIT_SECONDS}", "trials=5", "train_tokens=3000")
    search = replace(
        make_engine_search(*settings), ranks=RANKS, placement=Placement(engines=1, slots=1), full_tokens=3000
    )
    run = make_run(tmp_path_factory.mktemp("search") / "run", search)
    warnings = Warnings()
    logger = logging.getLogger("orchestrator")
    logger.addHandler(warnings)
    try:
        with tuner.ray_session(dashboard=True):
            tuner.run_tune(SearchController(run, search, 1, accidents), run)
            wait_until(lambda: not open_groups())
            left = open_groups()
    finally:
        logger.removeHandler(warnings)
    return Survived(run, accidents, left, warnings.said)


def test_the_search_outlives_its_ranks_and_its_group(survived: Survived) -> None:
    assert survived.accidents.at == {}
    assert_all_is_well(survived.run, trials=5)
    segments = {path.name for path in (survived.run.path / "ray").iterdir() if path.is_dir()}
    assert {"0001-2", "0002-2", "0003-2", "0004-2"} <= segments  # they went on under their own ids


def test_after_every_accident_there_is_another_group(survived: Survived) -> None:
    groups = [survived.accidents.groups[trial] for trial in ("0001", "0002", "0003", "0004", "0005")]
    assert len(set(groups)) == 5
    assert not [group for group in groups if is_alive(group)]


def test_of_what_hangs_is_warned_once(survived: Survived) -> None:
    hung = [(at, warning) for at, warning in survived.warnings if "hangs and is started again" in warning]
    # A busy machine may take longer for a step than this test allows, and more may hang than was stopped here. Another
    # one can't hang within the time that is allowed for a step, though: what is said sooner is said again.
    assert len(hung) >= 2, hung
    assert all(later - at > STEP_LIMIT_SECONDS / 2 for (at, _), (later, _) in pairwise(hung)), hung


def test_no_placement_group_is_left_behind(survived: Survived) -> None:
    assert survived.left == []
