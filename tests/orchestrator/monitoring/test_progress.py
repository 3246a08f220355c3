import pytest

from orchestrator.controller.events import Notice, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.monitoring.progress import Progress
from search_spaces.schema import Recipe
from tests.support.fake_search import point
from trials.records.trial_dir import Ending, EndingKind, Origin


@pytest.fixture
def board(small_recipe: Recipe) -> Progress:
    config = small_recipe.trial_config({})
    board = Progress(("learning_rate", "lora_rank", "target_modules"))
    board.apply(TrialStarted("0000", Origin.BASE, "base", config, 900))
    board.apply(TrialEvaluated("0000", point(3.0, 0)))
    board.apply(TrialStarted("0001", Origin.START, "usual", config, 900))
    board.apply(TrialStarted("0002", Origin.PROPOSED, "proposed", config, 900))
    return board


def test_the_best_is_a_trained_trial(board: Progress) -> None:
    assert board.best is None
    board.apply(TrialEvaluated("0001", point(4.0, 100)))
    board.apply(TrialEvaluated("0002", point(3.5, 100)))
    assert board.base_eval_loss == 3.0
    assert board.best is board.rows["0002"]


def test_states_follow_the_endings(board: Progress) -> None:
    board.apply(TrialEnded("0001", Ending(EndingKind.DIVERGED, "the loss is nan"), None))
    board.apply(TrialPaused("0002", "others promise more"))
    board.apply(Notice("anything"))
    assert {row.trial_id: row.state for row in board.rows.values()} == {
        "0000": "running",
        "0001": "diverged",
        "0002": "paused",
    }


def test_a_trial_that_goes_on_keeps_its_row(board: Progress, small_recipe: Recipe) -> None:
    board.apply(TrialEvaluated("0002", point(3.5, 100)))
    board.apply(TrialPaused("0002", "others promise more"))
    board.apply(TrialStarted("0002", Origin.PROPOSED, "proposed", small_recipe.trial_config({}), 900, 100))
    row = board.rows["0002"]
    assert row.state == "running"
    assert row.point == point(3.5, 100)


def test_what_measures_the_speed_is_never_the_best(board: Progress, small_recipe: Recipe) -> None:
    board.apply(TrialStarted("probe", Origin.PROBE, "probe", small_recipe.trial_config({}), 900))
    board.apply(TrialEvaluated("probe", point(0.1, 100)))
    assert board.best is None


def test_a_row_shows_what_the_search_varies(board: Progress) -> None:
    assert board.rows["0001"].settings == "lr=0.0002 rank=16 targets=q_proj+k_proj+v_proj+o_proj"
    assert board.rows["0000"].settings == "evaluated, not trained"
