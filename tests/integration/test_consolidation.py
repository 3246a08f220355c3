"""A search on a store whose second session trains each trial in two processes, on a real local Ray."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.controller import controller
from orchestrator.planning.plan_text import DataSizes
from orchestrator.state.deadline import from_budget
from orchestrator.state.search import Consolidation, Search
from orchestrator.storage.locations import create_run
from orchestrator.storage.object_store import ObjectStore
from orchestrator.storage.trial_snapshots import TrialSnapshotStore
from orchestrator.supervisor.session import run_session_search
from orchestrator.supervisor.supervisor import SessionExit
from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from trials.data.dataset import load_data
from trials.model.loading import load_tokenizer
from trials.state import TrialState

pytestmark = pytest.mark.cluster


def test_a_paused_trial_goes_on_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*SMALL, "engine=shared", "search.trials=2", "concurrent_trials=1", "reserve=5s", "full_trials=null"]
    recipe = load_recipe("demo", settings, environ={}).recipe
    sizes = DataSizes.of(recipe, load_data(recipe.data, load_tokenizer(recipe.model)))
    deadline = from_budget("20m", "5s", datetime.now(UTC))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    url = f"file://{tmp_path / 'store' / 'night'}"
    run = create_run(url)
    run.write_search(Search(recipe, {}, deadline, 0, sizes.full_tokens, sizes.data))
    wanted = Consolidation(2, 1.6, "0001", "the test wants it", datetime.now(UTC).isoformat())
    with monkeypatch.context() as forced:
        # The rule has tests of its own; here it says so as soon as it may.
        evaluated = run.trial("0001") / "metrics.jsonl"
        forced.setattr(controller, "plan_consolidation", lambda *_: wanted if evaluated.exists() else None)
        assert run_session_search(run) is SessionExit.CONSOLIDATED
    before = {record.id: len(record.points) for record in run.records()}
    search = run.read_search()
    assert (search.ranks, search.gpus_per_trial, search.regrouped) == (2, 0, wanted)
    assert run_session_search(run) is SessionExit.OVER
    records = {record.id: record for record in run.records()}
    started = records["0001"]
    ranks = [point.ranks for point in started.points]
    assert ranks == [1] * before["0001"] + [2] * (len(ranks) - before["0001"])
    assert ranks[-1] == 2
    assert started.ending is not None
    assert started.ending.kind is TrialState.FINISHED
    assert [point.ranks for point in records["0002"].points][-1] == 2
    kept = TrialSnapshotStore(ObjectStore(url), "trials/0001").read()
    assert kept is not None
    assert kept.owner is None
    assert {"ending.json", "adapter/adapter_model.safetensors", "log.txt"} <= set(kept.files)
    assert not list(tmp_path.glob("copies/qlora-orchestrator/trials/*/*"))
