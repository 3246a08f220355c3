from pathlib import Path

import pytest

from orchestrator.export.scores import manifest_scores
from orchestrator.state.run_dir import RunDir
from orchestrator.state.selection import pick_best
from tests.support.report_runs import BASE, STEP_TOKENS, Told, new_run, right, write_trial
from trials.metrics.intervals import wilson
from trials.records.trial_dir import Origin

BASE_SCORED = Told("0000", BASE.losses, origin=Origin.BASE, name="base", adapter=False, scores={1: right(4)})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = new_run(tmp_path / "run", ["evaluation.score_rows=40"])
    write_trial(run, BASE_SCORED)
    return run


def test_winner_base_and_starting_points_with_intervals(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5], origin=Origin.START, name="usual", scores={1: right(34)}))
    write_trial(run, Told("0002", [1.4, 1.2], scores={1: right(20), 2: right(36)}))
    write_trial(run, Told("0003", [1.6], scores={1: right(40)}))
    found = manifest_scores(run.records(), pick_best(run.records()))
    assert found is not None
    expected = wilson(36, 40)
    assert (found["measure"], found["rows"]) == ("accuracy", 40)
    assert found["winner"] == {
        "value": 0.9,
        "low": expected.low,
        "high": expected.high,
        "tokens_seen": 2 * STEP_TOKENS,
        "of_exported_weights": True,
    }
    base, start = found["others"]
    assert (base["origin"], base["value"], base["is_clear"]) == ("base", 0.1, True)
    assert (start["name"], start["value"], start["is_clear"]) == ("usual", 0.85, False)
    assert start["winner_is_better_by"]["value"] == pytest.approx(0.05)


def test_the_score_is_of_the_exported_weights_where_those_were_scored(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2, 1.3, 1.4], scores={1: right(20), 3: right(36)}))
    found = manifest_scores(run.records(), pick_best(run.records()))
    assert found is not None
    assert (found["winner"]["value"], found["winner"]["of_exported_weights"]) == (0.5, True)
    write_trial(run, Told("0002", [1.3, 1.0, 1.1], scores={1: right(20), 3: right(36)}))
    found = manifest_scores(run.records(), pick_best(run.records()))
    assert found is not None
    assert (found["winner"]["value"], found["winner"]["of_exported_weights"]) == (0.9, False)


def test_a_starting_point_that_wins_is_named_once(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2], origin=Origin.START, name="usual", scores={1: right(30)}))
    found = manifest_scores(run.records(), pick_best(run.records()))
    assert found is not None
    assert [other["origin"] for other in found["others"]] == ["base"]


def test_without_a_score_there_is_nothing(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.2]))
    assert manifest_scores(run.records(), pick_best(run.records())) is None
