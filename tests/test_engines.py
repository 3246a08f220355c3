"""Engines under Ray: a real search whose holder and whose engine are killed under it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import psutil
import pytest
import ray

from orchestrator import tuner
from orchestrator.conductor import Conductor
from orchestrator.engines import Engines
from orchestrator.events import Event, TrialEvaluated
from orchestrator.run_folder import Placement, RunFolder, Search
from search_spaces.recipe import load_recipe
from tests.conftest import SMALL
from tests.searches import make_run, make_search
from trials.records import EndingKind, TrialRecord

SETTINGS = ("engine=shared", "train_tokens=1500", "trials=5", "concurrent_trials=2", "reduction_factor=2", "rungs=0")


@dataclass
class Accidents:
    """Listens to a search: notes the engine's process at every evaluation, and kills what it's told to."""

    at: dict[str, Callable[[], int]]
    """Trial at whose first evaluation something is killed, and what gives its process id."""
    engines: dict[str, int] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrialEvaluated):
            self.engines.setdefault(event.trial_id, engine_process())
            victim = self.at.pop(event.trial_id, None)
            if victim is not None:
                os.kill(victim(), signal.SIGKILL)


def engine_process() -> int:
    actor = ray.get_actor("engine-0")
    return int(ray.get(actor.ready.options(max_task_retries=-1).remote()))


def first_holder_process() -> int:
    """The oldest holder's: that of the first trial, which took it over from the base model."""
    processes = psutil.Process().children(recursive=True)
    holders = [process for process in processes if "ImplicitFunc" in " ".join(process.cmdline())]
    return min(holders, key=psutil.Process.create_time).pid


def make_engine_search(*settings: str) -> Search:
    now = datetime.now(UTC)
    search = make_search(load_recipe("demo", [*SMALL, *SETTINGS, *settings], environ={}).recipe)
    return replace(search, deadline=replace(search.deadline, started=now, ends=now + timedelta(hours=1)))


def without_a_word(record: TrialRecord) -> bool:
    ending = record.ending
    return ending is not None and ending.kind is EndingKind.FAILED and "its process ended without" in ending.reason


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Accidents]:
    """A search of five trials in one engine; the second's holder is killed, then the engine under the third."""
    search = make_engine_search()
    run = make_run(tmp_path_factory.mktemp("search") / "run", search)
    environment = pytest.MonkeyPatch()
    environment.setenv("WANDB_MODE", "offline")
    accidents = Accidents({"0002": first_holder_process, "0003": engine_process})
    with tuner.ray_session(dashboard=False):
        engines = min(2, os.cpu_count() or 1)
        assert tuner.placement(search) == Placement(engines, slots=2)
        placed = Placement(engines=1, slots=2)
        tuner.run_tune(Conductor(run, search, placed.slots, accidents), run, search, placed)
    environment.undo()
    return run, accidents


def test_trials_share_one_process_until_it_is_killed(survived: tuple[RunFolder, Accidents]) -> None:
    _, accidents = survived
    assert accidents.at == {}
    first, *_, last = sorted(set(accidents.engines.values()), key=list(accidents.engines.values()).index)
    assert first != last
    assert len(set(accidents.engines.values())) == 2
    assert sum(process == first for process in accidents.engines.values()) >= 3


def test_the_search_outlives_its_holders_and_its_engine(survived: tuple[RunFolder, Accidents]) -> None:
    run, _ = survived
    records = run.records()
    assert [record.id for record in records] == [f"{number:04d}" for number in range(6)]
    dead = [record.id for record in records if without_a_word(record)]
    assert "0003" in dead
    assert 2 <= len(dead) <= 3
    assert {record.id for record in records if record.ending is None or record.ending.kind is EndingKind.FAILED} == {
        *dead
    }
    assert records[-1].points


def test_what_a_trial_logs_while_it_trains_is_in_its_holder_s_wandb_run(survived: tuple[RunFolder, Accidents]) -> None:
    run, _ = survived
    last = run.records()[-1]
    (log,) = last.folder.glob("wandb/offline-run-*/run-*.wandb")
    times = log.read_bytes().count(b"train/learning_rate")
    assert times == 2 * last.points[-1].step  # in the history, and as the newest


@pytest.fixture
def two_gpus() -> Iterator[None]:
    """Ray with two GPUs that only it believes in."""
    ray.init(num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def test_engines_have_a_gpu_each_and_trials_go_where_most_slots_are_free(two_gpus: None) -> None:
    search = replace(make_engine_search(), gpus_per_trial=1)
    engines = Engines(search, tuner.placement(search))
    processes = {name: ray.get(ray.get_actor(name).ready.remote()) for name in ("engine-0", "engine-1")}
    assert len(set(processes.values())) == 2
    assert ray.available_resources().get("GPU", 0) == 0
    taken = [engines.take_slot(trial_id) for trial_id in ("0000", "0001", "0002", "0003")]
    assert taken == ["engine-0", "engine-1", "engine-0", "engine-1"]
    engines.free_slot("0001")
    engines.free_slot("0001")
    assert engines.take_slot("0004") == "engine-1"
    engines.close()
    assert wait_until(lambda: not any(psutil.pid_exists(process) for process in processes.values()))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.1)
    return condition()


def test_where_trials_have_processes_of_their_own_there_is_no_engine(search: Search) -> None:
    engines = Engines(search, Placement(engines=0, slots=2))
    assert engines.take_slot("0000") is None
    engines.free_slot("0000")
    engines.free_all_slots()
    engines.close()
