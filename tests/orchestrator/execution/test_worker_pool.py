"""Engines under Ray: a real search whose proxy and whose engine are killed under it."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import psutil
import pytest
import ray

from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, TrialEvaluated
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.execution import tune_run as tuner
from orchestrator.execution import worker_pool as pool_module
from orchestrator.execution.cluster import placed
from orchestrator.execution.worker_pool import WorkerPool
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Placement, Search
from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from tests.support.fake_search import make_run, make_search
from tests.support.hanging_rows import HangingOnce
from tests.support.waiting import wait_until
from trials.console.logs import LOG_FILE
from trials.records.trial_dir import Origin, TrialDir
from trials.state import TrialState
from trials.system.processes import is_alive

pytestmark = pytest.mark.slow

STOPPED = psutil.STATUS_STOPPED
SETTINGS = ("engine=shared", "train_tokens=1500", "trials=5", "concurrent_trials=2")


@dataclass
class Accidents:
    """Listens to a search: notes the engine's process at every evaluation, and kills what it's told to."""

    at: dict[int, Callable[[], int]]
    """After how many other trials the one comes at whose first evaluation something is killed, and what gives its
    process id. Which trial that is depends on who was faster."""
    engines: dict[str, int] = field(default_factory=dict)
    name: str = "engine-0"
    with_signal: signal.Signals = signal.SIGKILL
    struck: list[str] = field(default_factory=list)
    """The trials at whose evaluations something was killed."""

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TrialEvaluated) or event.trial_id in self.engines:
            return
        victim = self.at.pop(len(self.engines), None)
        self.engines[event.trial_id] = self._engine()
        if victim is not None:
            self.struck.append(event.trial_id)
            os.kill(victim(), self.with_signal)

    def _engine(self) -> int:
        """A stopped engine doesn't answer, and the search, which would end it, waits for this listener.

        Another trial may have been evaluated in the moment before.
        """
        known = [self.engines[trial_id] for trial_id in self.struck]
        stopped = [process for process in known if is_alive(process) and psutil.Process(process).status() == STOPPED]
        return stopped[-1] if stopped else engine_process(self.name)


def engine_process(name: str = "engine-0") -> int:
    actor = ray.get_actor(name)
    return int(ray.get(actor.ready.options(max_task_retries=-1).remote()))


def first_proxy_process() -> int:
    """The oldest proxy's: that of the first trial, which took it over from the base model."""
    processes = psutil.Process().children(recursive=True)
    proxies = [process for process in processes if "ImplicitFunc" in " ".join(process.cmdline())]
    return min(proxies, key=psutil.Process.create_time).pid


def make_engine_search(*settings: str) -> Search:
    now = datetime.now(UTC)
    search = make_search(load_recipe("demo", [*SMALL, *SETTINGS, *settings], environ={}).recipe)
    deadline = replace(search.deadline, started=now, ends=now + timedelta(hours=1))
    # Trials are as long as the recipe says, and nothing is measured first.
    return replace(search, deadline=deadline, full_tokens=1500, shortened=1.0, placement=Placement(engines=1, slots=2))


def run_search(path: Path, search: Search, listener: Callable[[Event], None]) -> RunDir:
    run = make_run(path, search)
    with tuner.ray_session(dashboard=False):
        tuner.run_tune(SearchController(run, search, 2, listener), run)
    return run


def assert_all_is_well(run: RunDir, trials: int) -> None:
    """Every trial came to an end that isn't a failure, none was evaluated twice, and study and folders agree."""
    records = run.records()
    assert [record.id for record in records] == [f"{number:04d}" for number in range(trials + 1)]
    assert all(record.points and record.ending for record in records)
    assert not [record.id for record in records if record.ending and record.ending.kind is TrialState.FAILED]
    for record in records:
        steps = [point.step for point in record.points]
        assert steps == sorted(set(steps))
    told = optuna.load_study(study_name=None, storage=run.study_url).trials[1:]
    values = [{point.tokens_seen: point.best_eval_loss for point in record.points} for record in records[1:]]
    assert [trial.intermediate_values for trial in told] == values


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Accidents]:
    """A search of five trials in one engine; the first proxy is killed, then the engine under the third trial."""
    environment = pytest.MonkeyPatch()
    environment.setenv("WANDB_MODE", "offline")
    accidents = Accidents({2: first_proxy_process, 3: engine_process})
    run = run_search(tmp_path_factory.mktemp("search") / "run", make_engine_search(), accidents)
    environment.undo()
    return run, accidents


def test_trials_share_one_process_until_it_is_killed(survived: tuple[RunDir, Accidents]) -> None:
    _, accidents = survived
    assert accidents.at == {}
    first, *_, last = sorted(set(accidents.engines.values()), key=list(accidents.engines.values()).index)
    assert first != last
    assert len(set(accidents.engines.values())) == 2
    assert sum(process == first for process in accidents.engines.values()) >= 3


def test_the_search_outlives_its_holders_and_its_engine(survived: tuple[RunDir, Accidents]) -> None:
    run, accidents = survived
    assert_all_is_well(run, trials=5)
    segments = {path.name for path in (run.path / "ray").iterdir() if path.is_dir()}
    assert f"{accidents.struck[1]}-2" in segments  # it went on under its own id


def test_what_a_trial_logs_while_it_trains_is_in_its_holder_s_wandb_run(survived: tuple[RunDir, Accidents]) -> None:
    run, _ = survived
    undisturbed = [
        record for record in run.records() if (record.folder / LOG_FILE).read_text().count(" in process ") == 1
    ]
    assert undisturbed
    for record in undisturbed:
        logs = list(record.folder.glob("wandb/offline-run-*/run-*.wandb"))
        times = sum(log.read_bytes().count(b"train/learning_rate") for log in logs)
        assert times == 2 * record.points[-1].step  # in the history, and as the newest


def test_a_trial_has_one_wandb_run_through_all_its_stretches(survived: tuple[RunDir, Accidents]) -> None:
    run, accidents = survived
    ids = {}
    for record in run.records():
        runs = list(record.folder.glob("wandb/offline-run-*"))
        ids[record.id] = {path.name.rsplit("-", 1)[1] for path in runs}
        if record.id == accidents.struck[1]:  # its engine was killed under it
            assert len(runs) >= 2
    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == len(ids)


def test_a_trial_s_log_tells_all_its_stretches_and_no_other_trial_s(survived: tuple[RunDir, Accidents]) -> None:
    run, accidents = survived
    for record in run.records():
        said = (record.folder / LOG_FILE).read_text()
        assert {line.split()[3] for line in said.splitlines() if " INFO trial " in line} <= {record.id, f"{record.id}:"}
        assert " begins in process " in said
        assert said.count("eval loss") >= len(record.points)
    cut_off = (run.trial(accidents.struck[1]) / LOG_FILE).read_text()
    assert " goes on in process " in cut_off
    assert len(set(re.findall(r"in process (\d+)", cut_off))) == 2


def test_an_engine_s_output_is_kept_through_its_death(survived: tuple[RunDir, Accidents]) -> None:
    run, accidents = survived
    said = (run.logs / "engine-0.log").read_text()
    assert all(f"in process {process} on" in said for process in set(accidents.engines.values()))


@pytest.mark.parametrize(("backend", "slots"), [("shared", 2), ("trl", 1)])
def test_a_worker_that_hangs_is_started_again_and_its_trials_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, slots: int
) -> None:
    """The first hangs in its data, and says where. An engine's second one is stopped: not even its threads can tell."""
    monkeypatch.setattr(pool_module, "TrialWorker", HangingOnce)
    monkeypatch.setenv("HANGS_ONCE_IN", str(tmp_path))
    name = "engine-0" if backend == "shared" else "trl-0"
    stops = {1: engine_process} if backend == "shared" else {}
    accidents = Accidents(dict(stops), name=name, with_signal=signal.SIGSTOP)
    settings = (f"engine={backend}", "machine.step_limit_seconds=8", "trials=2", "space.lora_rank=null")
    search = replace(make_engine_search(*settings), placement=Placement(engines=1, slots=slots))
    run = run_search(tmp_path / "run", search, accidents)
    assert (tmp_path / "hung").exists()
    assert accidents.at == {}
    assert_all_is_well(run, trials=2)
    said = (run.logs / f"{name}.log").read_text()
    # On a busy machine a step may take longer than that, too.
    assert len(set(re.findall(r" in process (\d+) on", said))) >= 2 + len(stops)
    assert "no progress within machine.step_limit_seconds: this process ends" in said
    assert "hanging_rows.py" in said
    for record in run.records():
        assert f"trial {record.id} begins in process" in said
        # A stopped process may have trained on from its last checkpoint: its trials are evaluated there again.
        evaluations = (record.folder / LOG_FILE).read_text().count("eval loss")
        assert evaluations >= len(record.points) if stops else evaluations == len(record.points)
    for struck in accidents.struck:
        stopped = accidents.engines[struck]
        assert wait_until(lambda process=stopped: not is_alive(process))


@pytest.fixture
def two_gpus() -> Iterator[None]:
    """Ray with two GPUs that only it believes in."""
    ray.init(num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def test_engines_have_a_gpu_each_and_trials_go_where_most_slots_are_free(two_gpus: None) -> None:
    search = replace(make_engine_search(), gpus_per_trial=1)
    placement = placed(search).placement
    assert placement is not None
    engines = WorkerPool(search, placement)
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


def test_a_trial_has_left_once_nothing_of_it_runs(two_gpus: None, tmp_path: Path) -> None:
    search = make_engine_search("train_tokens=1000000", "evaluations=1")
    engines = WorkerPool(search, Placement(engines=1, slots=2))
    assert engines.has_left("0001")
    folder = TrialDir(tmp_path / "0001")
    config = search.recipe.trial_config({}).model_copy(update={"base_eval_loss": 9.0})
    folder.begin(config, Origin.PROPOSED, "proposed")
    request = TrialRequest("0001", Origin.PROPOSED, "proposed", config, folder.path)
    actor = ray.get_actor(engines.take_slot("0001"))
    ray.get(actor.begin.remote(request))
    assert wait_until(lambda: bool(list(folder.path.glob("tensorboard/events.*"))), seconds=60)
    engines.free_slot("0001")
    assert not engines.has_left("0001")  # not before its step is over
    assert wait_until(lambda: engines.has_left("0001"), seconds=30)
    (process,) = [psutil.Process(ray.get(actor.ready.remote()))]
    spent = process.cpu_times().user
    time.sleep(2.0)
    assert process.cpu_times().user - spent < 1.0
    engines.close()


def test_under_trl_a_worker_has_a_gpu_and_one_slot(two_gpus: None) -> None:
    search = placed(replace(make_engine_search("engine=trl"), gpus_per_trial=1))
    assert search.placement == Placement(engines=2, slots=2)
    pool = WorkerPool(search, search.placement)
    assert len({ray.get(ray.get_actor(name).ready.remote()) for name in ("trl-0", "trl-1")}) == 2
    assert ray.available_resources().get("GPU", 0) == 0
    assert [pool.take_slot(trial_id) for trial_id in ("0000", "0001")] == ["trl-0", "trl-1"]
    assert not pool.has_room
    pool.close()
