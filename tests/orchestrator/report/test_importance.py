import math
from pathlib import Path

import optuna
import pytest

from orchestrator.controller.new_trials import NewTrials
from orchestrator.controller.study import StudyRecorder
from orchestrator.report.data import read_report_data
from orchestrator.report.importance import LEAST_TRIALS, Importance, importance
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import BASE, Drawn, Told, new_run, write_trial
from trials.records.trial_dir import Ending
from trials.state import TrialState

PRUNED = Ending(TrialState.PRUNED, "place 9 of 9")


def fill(run: RunDir, trials: int, ending: Ending | None = PRUNED) -> None:
    """Trials whose loss depends on the learning rate alone, in the folder and in a real study."""
    write_trial(run, BASE)
    recipe = run.read_search().recipe
    new_trials = NewTrials(recipe, [])
    for _ in range(trials):
        new = new_trials.next(Drawn(recipe))
        assert new is not None
        loss = 1.2 + 0.2 * abs(math.log10(new.values["learning_rate"]) + 3)
        write_trial(run, Told(new.trial_id, [loss], ending), recipe.trial_config(new.values))
    StudyRecorder(run, recipe, run.records(), [].append)


def test_the_hyperparameter_that_decides_comes_first(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    fill(run, 24)

    found = importance(read_report_data(run))

    assert isinstance(found, Importance)
    assert next(iter(found.shares)) == "learning_rate"
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares.keys() == run.read_search().recipe.space.keys()
    assert (found.trials, found.about) == (24, "loss at 11,111 tokens")


def test_it_is_about_the_rung_that_all_reached_not_about_how_far_trials_got(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for number in range(1, 25):
        rate, dropout = 1e-5 * 1.3**number, ((number * 7) % 24) / 240
        values = {"learning_rate": rate, "lora_dropout": dropout}
        at_the_rung = 1.8 - number / 100
        write_trial(run, Told(f"{number:04d}", [at_the_rung, 1.0 + dropout], PRUNED, values=values))
    found = importance(read_report_data(run))
    assert isinstance(found, Importance)
    assert found.shares["learning_rate"] > found.shares["lora_dropout"]


def test_it_is_what_optuna_says_of_the_study_on_disk(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["search.rungs=0"])
    fill(run, 12, Ending(TrialState.FINISHED, "all its steps"))
    study = optuna.load_study(study_name=None, storage=run.study_url)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)

    found = importance(read_report_data(run))

    assert isinstance(found, Importance)
    assert found.about == "loss at full length"
    assert found.shares == pytest.approx(optuna.importance.get_param_importances(study, evaluator=evaluator))


def test_without_rungs_only_full_trials_count(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["search.rungs=0"])
    fill(run, 12, PRUNED)
    assert importance(read_report_data(run)) == (
        "There are too few trials to tell: 0 have a loss at full length, and it takes 8."
    )


def test_too_few_trials_are_a_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    fill(run, LEAST_TRIALS - 1)
    assert importance(read_report_data(run)) == (
        "There are too few trials to tell: 7 have a loss at 11,111 tokens, and it takes 8."
    )


def test_trials_that_are_all_alike_are_a_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for number in range(1, LEAST_TRIALS + 1):
        write_trial(run, Told(f"{number:04d}", [1 + number / 10], values={"learning_rate": 1e-4}))
    assert "differ in fewer than two hyperparameters" in str(importance(read_report_data(run)))


def test_lists_of_modules_are_choices_like_others(tmp_path: Path) -> None:
    choices = "space.target_modules={choices: [[q_proj], [q_proj, v_proj]]}"
    run = new_run(tmp_path / "run", [choices, "start.usual.target_modules=[q_proj]"])
    fill(run, 12)
    found = importance(read_report_data(run))
    assert isinstance(found, Importance)
    assert "target_modules" in found.shares


def test_the_study_on_disk_is_not_needed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    fill(run, LEAST_TRIALS)
    (run.path / "study.db").unlink()
    assert isinstance(importance(read_report_data(run)), Importance)
    assert not (run.path / "study.db").exists()
