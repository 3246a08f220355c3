"""Trials with processes of their own, under Ray: what they leave besides their records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.controller.controller import SearchController
from orchestrator.execution import tune_run as tuner
from orchestrator.state.search import Placement
from tests.orchestrator.execution.test_worker_pool import make_engine_search
from tests.support.fake_search import make_run
from trials.console.logs import LOG_FILE

pytestmark = pytest.mark.slow


def test_a_trial_s_log_and_its_process_s_output_are_in_the_run_folder(tmp_path: Path) -> None:
    search = replace(make_engine_search("engine=trl", "trials=1"), placement=Placement(engines=0, slots=1))
    run = make_run(tmp_path / "run", search)
    with tuner.ray_session(dashboard=False):
        tuner.run_tune(SearchController(run, search, 1, lambda _: None), run)
    base, trial = run.records()
    assert trial.points
    for record in (base, trial):
        said = (record.folder / LOG_FILE).read_text()
        assert f"INFO trial {record.id} begins in process " in said
        assert said.count("eval loss") == len(record.points)
        assert record.ending is not None
        assert f"{record.ending.kind.value}: {record.ending.reason}" in said
        # One process ran both, one after the other; each has what it wrote meanwhile.
        assert f"trial {record.id} begins" in (run.logs / f"{record.id}.log").read_text()
    assert f"trial {base.id} " not in (run.logs / f"{trial.id}.log").read_text()
