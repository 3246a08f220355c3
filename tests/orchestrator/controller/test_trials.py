"""The table of a search's trials: which adapters stay on disk."""

from __future__ import annotations

import pytest

from orchestrator.controller.trials import TrialTable
from orchestrator.state.run_dir import RunDir
from tests.support.fake_search import point, record
from trials.records.trial_dir import Ending, Origin, TrialDir
from trials.state import TrialState


def add(run: RunDir, name: str, loss: float) -> TrialDir:
    folder = TrialDir(run.trial(name))
    folder.begin(run.read_search().recipe.trial_config({}), Origin.PROPOSED, "proposed")
    record(folder, point(loss, 100))
    return folder


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, {"0001"}), (3, {"0001", "0002", "0003"}), (4, {f"000{n}" for n in range(1, 5)})]
)
def test_the_best_of_ended_trials_keep_their_adapters_and_those_that_run_too(
    run: RunDir, keep: int, kept: set[str]
) -> None:
    finished = Ending(TrialState.FINISHED, "made up")
    for name, loss in (("0001", 1.0), ("0002", 3.0), ("0003", 2.0)):
        add(run, name, loss).end(finished)
    for name, loss in (("0004", 8.0), ("0005", 9.0)):
        add(run, name, loss)
    table = TrialTable(run, run.records(), keep)
    table.end(table["0004"], finished)
    assert {each.id for each in run.records() if each.has_adapter} == kept | {"0005"}
