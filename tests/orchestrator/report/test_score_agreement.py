from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.report.score_agreement import ScoredTrial, agreement, at_end, at_rung, contradictions, latest
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import STEP_TOKENS, Told, new_run, right, write_trial
from trials.metrics.task_scores import Measure, RowScores
from trials.records.trial_dir import Ending
from trials.state import TrialState

RUNG = STEP_TOKENS - 1
PRUNED = Ending(TrialState.PRUNED, "doesn't pass")
PATIENCE = Ending(TrialState.EARLY_STOPPED, "3 evaluations without improving")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return new_run(tmp_path / "run")


def ids(trials: list[ScoredTrial]) -> list[str]:
    return [trial.record.id for trial in trials]


def scored(
    run: RunDir, *trials: tuple[float, tuple[float, ...]], measure: Measure = Measure.LABEL
) -> list[ScoredTrial]:
    """Trials of one evaluation with these losses and scores."""
    for number, (loss, scores) in enumerate(trials, start=1):
        write_trial(run, Told(f"{number:04d}", [loss], scores={1: scores}, measure=measure))
    return latest(run.records())


def test_trials_are_compared_where_they_reached_a_rung_and_at_their_end(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5, 1.4, 1.3], scores={1: right(10), 3: right(30)}))
    write_trial(run, Told("0002", [1.6], PRUNED, scores={1: right(20)}))
    write_trial(run, Told("0003", [1.4, 1.5], PATIENCE, scores={1: right(5), 2: right(6)}))
    write_trial(run, Told("0004", [1.4, 1.5], scores={2: right(7)}))  # no score at the first point
    write_trial(run, Told("0005", [1.4, 1.5], scores={1: right(8)}))  # none at the end
    write_trial(run, Told("0006", [1.5]))
    records = run.records()
    assert ids(at_rung(records, RUNG)) == ["0001", "0002", "0003", "0005"]
    assert ids(at_rung(records, 2 * STEP_TOKENS)) == ["0003", "0004"]
    assert ids(at_end(records)) == ["0001", "0003", "0004"]
    assert ids(latest(records)) == ["0001", "0002", "0003", "0004", "0005"]
    first = at_rung(records, RUNG)[0]
    assert (first.loss, first.score) == (pytest.approx(1.5), 0.25)
    assert at_end(records)[0].score == 0.75


def test_orders_that_agree_and_orders_that_do_not(run: RunDir) -> None:
    trials = scored(run, *((1.0 + k / 10, right(30 - k)) for k in range(6)))
    found = agreement(trials)
    assert found is not None
    assert (found.trials, found.tau) == (6, pytest.approx(1.0))
    assert found.p_value < 0.05
    reverse = [
        replace(t, scoring=replace(t.scoring, scores=u.scoring.scores))
        for t, u in zip(trials, trials[::-1], strict=True)
    ]
    opposite = agreement(reverse)
    assert opposite is not None
    assert opposite.tau == pytest.approx(-1.0)


def test_no_order_of_two_trials_or_of_equal_scores(run: RunDir) -> None:
    trials = scored(run, (1.0, right(30)), (1.1, right(30)), (1.2, right(30)))
    assert agreement(trials) is None
    assert agreement(trials[:2]) is None


def test_a_contradiction_is_clear_by_both_measures(run: RunDir) -> None:
    trials = scored(run, (1.0, right(10)), (1.2, right(30)), (1.3, right(12)))
    found = contradictions(trials)
    assert found.told_apart == 3
    (pair,) = found.found
    assert (pair.lower_loss.record.id, pair.better_score.record.id) == ("0001", "0002")
    assert pair.loss.difference == pytest.approx(0.2)
    assert pair.score.difference.value == pytest.approx(0.5)


def test_what_the_loss_can_not_tell_apart_is_no_contradiction(run: RunDir) -> None:
    found = contradictions(scored(run, (1.0, right(10)), (1.001, right(40))))
    assert (found.told_apart, found.found) == (0, ())


def test_what_the_score_can_not_tell_apart_is_no_contradiction(run: RunDir) -> None:
    found = contradictions(scored(run, (1.0, right(10)), (1.2, right(14))))
    assert (found.told_apart, found.found) == (1, ())


def test_text_scores_are_compared_too_and_the_worst_comes_first(run: RunDir) -> None:
    rows = [0.01 * k for k in range(40)]
    trials = scored(
        run,
        (1.0, tuple(rows)),
        (1.2, tuple(row + 0.1 + 0.001 * k for k, row in enumerate(rows))),
        (1.4, tuple(row + 0.2 + 0.001 * k for k, row in enumerate(rows))),  # all of it above the second by 0.1
        measure=Measure.ROUGE_L,
    )
    found = contradictions(trials).found
    pairs = [(pair.lower_loss.record.id, pair.better_score.record.id) for pair in found]
    assert pairs == [("0001", "0003"), ("0001", "0002"), ("0002", "0003")]
    assert found[1].score.difference.value == pytest.approx(0.1195)


def test_other_rows_are_not_compared(run: RunDir) -> None:
    one, other = scored(run, (1.0, right(10)), (1.2, right(40)))
    fewer = replace(other, scoring=replace(other.scoring, scores=RowScores(Measure.LABEL, right(20, of=20))))
    assert contradictions([one, fewer]).found == ()
    counts = [*other.scoring.losses.token_counts[1:], 3]
    elsewhere = replace(
        other, scoring=replace(other.scoring, losses=replace(other.scoring.losses, token_counts=counts))
    )
    assert contradictions([one, elsewhere]).told_apart == 0
