"""Trials that are stopped one after another in a worker group: how soon its GPUs are the next one's, and free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group_table

from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution.channel import Finished
from orchestrator.execution.cluster import placed
from orchestrator.execution.tune_run import ray_session
from orchestrator.execution.worker_pool import WorkerPool
from orchestrator.state.deadline import from_budget
from orchestrator.state.search import Search
from search_spaces.loader import load_recipe
from trials.config import TrialConfig
from trials.records.trial_dir import Origin, TrialDir

_PATIENCE_SECONDS = 120.0


def change_trials(recipe: Path, work: Path, stops: int, ranks: int) -> dict[str, Any]:
    """Return the seconds from a stop until nothing of the trial runs, and until the next trial's first evaluation.

    Also those to the first trial's first evaluation, and from the end until all GPUs are free.
    """
    gone, next_ = [], []
    with _open_pool(recipe, work, ranks) as (pool, search):
        began = time.perf_counter()
        config = _config(search)
        worker = _begin(pool, config, work, 0)
        _first_evaluation(worker, "0")
        first = time.perf_counter() - began
        for number in range(1, stops + 1):
            stopped = time.perf_counter()
            pool.free_slot(str(number - 1))
            wait_until(lambda number=number: pool.has_left(str(number - 1)))  # type: ignore[misc]
            gone.append(time.perf_counter() - stopped)
            worker = _begin(pool, config, work, number)
            _first_evaluation(worker, str(number))
            next_.append(time.perf_counter() - stopped)
        ended = time.perf_counter()
        pool.close()
        wait_until(lambda: not open_groups())
        return {"gone": gone, "next": next_, "first": first, "closed": time.perf_counter() - ended}


def open_groups() -> list[str]:
    """Return Ray's placement groups that hold GPUs or wait for some."""
    return [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until `holds` returns True. Raises TimeoutError after two minutes."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("nothing happens")
        time.sleep(0.02)


@contextmanager
def _open_pool(recipe: Path, work: Path, ranks: int) -> Iterator[tuple[WorkerPool, Search]]:
    settings = load_recipe(str(recipe), environ={}).recipe
    search = Search(settings, {}, from_budget("1h", None, datetime.now(UTC)), ranks, full_tokens=100_000, ranks=ranks)
    with ray_session(dashboard=True):
        search = placed(replace(search, placement=None))
        assert search.placement is not None
        yield WorkerPool(search, search.placement, work / "ray"), search


def _config(search: Search) -> TrialConfig:
    """Return the settings of a trial that is stopped at the first of many evaluations, one step after it began."""
    config = search.recipe.trial_config({"rows_seen": 1600, "effective_batch": 16, "learning_rate": 2e-4})
    evaluation = config.evaluation.model_copy(update={"evaluations": 100})
    return config.model_copy(update={"base_eval_loss": 1e9, "evaluation": evaluation})


def _begin(pool: WorkerPool, config: TrialConfig, work: Path, number: int) -> Any:
    folder = work / "changes" / f"{time.time_ns()}-{number}"
    TrialDir(folder).begin(config, Origin.PROPOSED, "change")
    worker = _named(pool.take_slot(str(number)))
    ray.get(worker.begin.remote(_request(config, folder, number)))
    return worker


def _named(name: str) -> Any:
    """Return an actor by its name, which is known a moment after the actor was asked for."""
    found: list[Any] = []

    def is_found() -> bool:
        with suppress(ValueError):
            found.append(ray.get_actor(name))
        return bool(found)

    wait_until(is_found)
    return found[0]


def _request(config: TrialConfig, folder: Path, number: int) -> TrialRequest:
    return TrialRequest(str(number), Origin.PROPOSED, "proposed", config, folder, group="changes")


def _first_evaluation(worker: Any, trial_id: str) -> None:
    word = ray.get(worker.next_message.remote(trial_id))
    if isinstance(word, Finished):
        raise RuntimeError(f"the trial ended: {word.error}")
