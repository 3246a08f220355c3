import pytest

from orchestrator.controller.events import Notice, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.monitoring.progress import Progress
from search_spaces.schema import Recipe
from tests.support.fake_search import point
from trials.records.trial_dir import Ending, Origin
from trials.state import TrialState


@pytest.fixture
def progress(small_recipe: Recipe) -> Progress:
    config = small_recipe.trial_config({})
    progress = Progress(("learning_rate", "lora_rank", "target_modules"))
    progress.apply(TrialStarted("0000", Origin.BASE, "base", config, 900))
    progress.apply(TrialEvaluated("0000", point(3.0, 0)))
    progress.apply(TrialStarted("0001", Origin.START, "usual", config, 900))
    progress.apply(TrialStarted("0002", Origin.PROPOSED, "proposed", config, 900))
    return progress


def test_the_best_is_a_trained_trial(progress: Progress) -> None:
    assert progress.best is None
    progress.apply(TrialEvaluated("0001", point(4.0, 100)))
    progress.apply(TrialEvaluated("0002", point(3.5, 100)))
    assert progress.base_eval_loss == 3.0
    assert progress.best is progress.rows["0002"]


def test_states_follow_the_endings(progress: Progress) -> None:
    progress.apply(TrialEnded("0001", Ending(TrialState.DIVERGED, "the loss is nan"), None))
    progress.apply(TrialPaused("0002", "other trials look more promising"))
    progress.apply(Notice("anything"))
    assert {row.trial_id: row.state for row in progress.rows.values()} == {
        "0000": "running",
        "0001": "diverged",
        "0002": "paused",
    }


def test_a_trial_that_goes_on_keeps_its_row(progress: Progress, small_recipe: Recipe) -> None:
    progress.apply(TrialEvaluated("0002", point(3.5, 100)))
    progress.apply(TrialPaused("0002", "other trials look more promising"))
    progress.apply(TrialStarted("0002", Origin.PROPOSED, "proposed", small_recipe.trial_config({}), 900, 100))
    row = progress.rows["0002"]
    assert row.state == "running"
    assert row.point == point(3.5, 100)


def test_what_measures_the_speed_is_never_the_best(progress: Progress, small_recipe: Recipe) -> None:
    progress.apply(TrialStarted("probe", Origin.PROBE, "probe", small_recipe.trial_config({}), 900))
    progress.apply(TrialEvaluated("probe", point(0.1, 100)))
    assert progress.best is None


def test_a_row_shows_what_the_search_varies(progress: Progress) -> None:
    assert progress.rows["0001"].settings == "lr=0.0002 rank=16 targets=q_proj+k_proj+v_proj+o_proj"
    assert progress.rows["0000"].settings == "evaluated, not trained"
