"""The study that people and samplers read: what the trials' folders say, under the trials' own numbers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from orchestrator.controller.derived_trials import CONSTRAINT, state_of
from orchestrator.controller.study import StudyRecorder, record_export
from orchestrator.planning.trial_length import shortened_trial
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import BASE, BASE_LOSS, FINISHED, STEP_TOKENS, Told, drawn, new_run, write_trial
from trials.records.trial_dir import Ending, Origin, TrialDir
from trials.state import TrialState


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    return run


def recorder(run: RunDir, said: list[str] | None = None) -> StudyRecorder:
    return StudyRecorder(run, run.read_search().recipe, run.records(), (said if said is not None else []).append)


def write(run: RunDir, number: int, losses: Sequence[float], ending: Ending | None = FINISHED, **more: object) -> None:
    recipe = run.read_search().recipe
    told = Told(f"{number:04d}", losses, ending, **more)  # type: ignore[arg-type]
    write_trial(run, told, recipe.trial_config(drawn(recipe, number)))


def opened(run: RunDir) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=run.study_url)


def trials(run: RunDir) -> list[FrozenTrial]:
    return opened(run).trials


def aside(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.path.glob("study.db.*"))


OUTCOMES = [
    (TrialState.FINISHED, OptunaState.COMPLETE),
    (TrialState.EARLY_STOPPED, OptunaState.COMPLETE),
    (TrialState.PRUNED, OptunaState.PRUNED),
    (TrialState.DIVERGED, OptunaState.PRUNED),
    (TrialState.OUT_OF_MEMORY, OptunaState.PRUNED),
    (TrialState.FAILED, OptunaState.FAIL),
]


@pytest.mark.parametrize("is_later", [False, True])
def test_each_outcome_is_told_as_what_it_is_under_the_trial_s_own_number(run: RunDir, *, is_later: bool) -> None:
    study = recorder(run)
    for number, (kind, _) in enumerate(OUTCOMES, 1):
        write(run, number, [2.0, 1.5, 2.2], Ending(kind, ""), origin=Origin.START, name=f"start {number}")
        study.write_later(f"{number:04d}")
    study = study if is_later else recorder(run)
    study.flush()
    base, *found = trials(run)
    assert (base.number, base.state, base.params, base.user_attrs) == (0, OptunaState.FAIL, {}, {"name": "base"})
    assert [(trial.number, trial.state) for trial in found] == list(enumerate((state for _, state in OUTCOMES), 1))
    for trial in found:
        config = run.records()[trial.number].config.hyperparameters.model_dump()
        assert trial.params == {name: config[name] for name in trial.params}
        assert trial.params.keys() == run.read_search().recipe.space.keys()
        assert trial.intermediate_values == {STEP_TOKENS: 2.0, 2 * STEP_TOKENS: 1.5, 3 * STEP_TOKENS: 1.5}
        assert trial.user_attrs["name"] == f"start {trial.number}"
    assert found[0].value == 1.5
    assert [trial.number for trial in found if trial.constraints[CONSTRAINT] > 0] == [4, 5]


def test_the_base_model_changes_neither_the_best_trial_nor_what_samplers_see(run: RunDir) -> None:
    for number, loss in enumerate((BASE_LOSS + 0.5, BASE_LOSS + 0.2, BASE_LOSS + 0.3), 1):
        write(run, number, [loss])
    recorder(run)
    study = opened(run)
    assert study.best_trial.number == 2
    assert study.user_attrs == {"base_eval_loss": BASE_LOSS}
    space = run.read_search().recipe.space.keys()
    assert optuna.search_space.IntersectionSearchSpace(include_pruned=True).calculate(study).keys() == space
    study.sampler = optuna.samplers.TPESampler(multivariate=True, n_startup_trials=1, seed=1)
    assert study.ask().number == 4


def test_a_trial_without_any_loss_is_not_complete(run: RunDir) -> None:
    write(run, 1, [], Ending(TrialState.PRUNED, ""))
    recorder(run)
    assert [trial.state for trial in trials(run)[1:]] == [OptunaState.PRUNED]


def test_a_trial_grows_as_its_folder_does(run: RunDir) -> None:
    study = recorder(run)
    for losses, ending in (([], None), ([2.0], None), ([2.0, 1.5], None), ([2.0, 1.5], FINISHED)):
        shutil.rmtree(run.trial("0001"), ignore_errors=True)
        write(run, 1, losses, ending)
        if len(losses) == 2:
            study = recorder(run)  # the process died
        study.write_later("0001")
        study.flush()
        (trial,) = trials(run)[1:]
        assert trial.intermediate_values == dict(zip((STEP_TOKENS, 2 * STEP_TOKENS), losses, strict=False))
        assert trial.state is (OptunaState.RUNNING if ending is None else OptunaState.COMPLETE)
    assert trial.value == 1.5
    assert aside(run) == []


def test_an_evaluation_that_is_made_again_counts_once_as_it_is_now(run: RunDir) -> None:
    write(run, 1, [2.0, 1.8], None)
    study = recorder(run)
    (run.trial("0001") / "metrics.jsonl").unlink()  # as after going back to a checkpoint before the first evaluation
    study.write_later("0001")
    study.flush()
    shutil.rmtree(run.trial("0001"))
    write(run, 1, [2.0, 1.7])
    study.write_later("0001")
    study.flush()
    assert trials(run)[1].intermediate_values == {STEP_TOKENS: 2.0, 2 * STEP_TOKENS: 1.7}


def test_scores_are_noted_and_decide_nothing(run: RunDir) -> None:
    shutil.rmtree(run.trial("0000"))
    write_trial(run, replace(BASE, scores={1: [0.0, 0.5]}))
    write(run, 1, [2.0, 2.0, 2.0, 2.0], scores={1: [0.5, 0.5], 3: [1.0, 0.5]})
    recorder(run)
    trial = trials(run)[1]
    assert trial.user_attrs["score"] == 0.75
    assert (trial.value, set(trial.intermediate_values.values())) == (2.0, {2.0})
    assert opened(run).user_attrs == {"base_eval_loss": BASE_LOSS, "base_score": 0.25}


def test_a_trial_that_is_set_aside_has_failed_and_its_number_stays_taken(run: RunDir) -> None:
    for number in (1, 2):
        write(run, number, [2.0], None)
    study = recorder(run)
    (run.path / "damaged").mkdir()
    run.trial("0002").rename(run.path / "damaged" / "0002-1")
    study.write_later("0002")
    write(run, 3, [2.0], None)
    study.write_later("0003")
    study.flush()
    states = [OptunaState.FAIL, OptunaState.RUNNING, OptunaState.FAIL, OptunaState.RUNNING]
    assert [trial.state for trial in trials(run)] == states
    recorder(run)
    assert aside(run) == []
    (run.path / "study.db").unlink()
    recorder(run)
    assert [trial.state for trial in trials(run)] == states


def test_a_trial_in_the_study_alone_counts_for_nothing(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    write(run, 1, [2.0], None)
    recorder(run)
    opened(run).add_trial(optuna.trial.create_trial(state=OptunaState.RUNNING))
    with caplog.at_level(logging.WARNING):
        recorder(run)
    assert len(trials(run)) == 2
    assert aside(run) == ["study.db.broken-1"]
    assert "study.db didn't agree with the trials' folders" in caplog.text


@pytest.mark.parametrize("what", ["ended", "another value", "other hyperparameters"])
def test_a_study_that_disagrees_is_made_anew(run: RunDir, what: str) -> None:
    write(run, 1, [2.0], None if what == "ended" else FINISHED)
    write(run, 2, [1.9], None)
    recorder(run)
    before = trials(run)
    if what == "ended":
        opened(run).tell(1, state=OptunaState.FAIL)
    elif what == "another value":
        shutil.rmtree(run.trial("0001"))
        write(run, 1, [1.7])
    else:
        shutil.rmtree(run.trial("0002"))
        recipe = run.read_search().recipe
        write_trial(run, Told("0002", [1.9], None), recipe.trial_config(drawn(recipe, 77)))
    recorder(run)
    assert aside(run) == ["study.db.broken-1"]
    after = trials(run)
    assert after[1].state is before[1].state
    assert (after[1].value == before[1].value) is (what != "another value")
    assert (after[2].params == before[2].params) is (what != "other hyperparameters")


def test_a_study_numbered_by_an_earlier_version_is_numbered_anew(run: RunDir) -> None:
    write(run, 1, [2.0], None, origin=Origin.START, name="usual")
    recorder(run)
    trial = trials(run)[1]
    (run.path / "study.db").unlink()
    # Those versions had no trial for the base model: numbers were the ids less one.
    optuna.create_study(study_name=None, storage=run.study_url).add_trial(trial)
    said: list[str] = []
    recorder(run, said)
    assert [each.user_attrs["name"] for each in trials(run)] == ["base", "usual"]
    assert aside(run) == ["study.db.broken-1"]
    assert said == []


def test_a_damaged_or_missing_study_is_made_anew_and_that_is_said(run: RunDir) -> None:
    said: list[str] = []
    recorder(run, said)
    assert said == []  # the search begins
    write(run, 1, [2.0])
    (run.path / "study.db").write_bytes(b"half a file")
    recorder(run, said)
    (run.path / "study.db").unlink()
    recorder(run, said)
    assert [trial.value for trial in trials(run)[1:]] == [2.0]
    assert [text.partition(";")[0] for text in said] == [
        f"study.db was damaged (it's {run.path / 'study.db.broken-1'} now)",
        "study.db was gone",
    ]


def test_a_shortened_trial_has_the_length_that_was_proposed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["space.train_tokens={low: 1000, high: 100000}"])
    recipe = run.read_search().recipe
    run.write_search(replace(run.read_search(), shortened=0.3))
    write_trial(run, BASE)
    for number, tokens in enumerate((1000, 2251, 100_000), 1):
        config = shortened_trial(recipe.trial_config({**drawn(recipe, number), "train_tokens": tokens}), 0.3)
        TrialDir(run.trial(f"{number:04d}")).begin(config, Origin.PROPOSED, "proposed")
    recorder(run)
    assert [trial.params["train_tokens"] for trial in trials(run)[1:]] == [1000, 2250, 100_000]  # 675 / 0.3 is 2250
    recorder(run)
    assert aside(run) == []


def test_a_trial_that_the_clock_ended_is_not_told_like_one_that_was_beaten(run: RunDir) -> None:
    write(run, 1, [2.0, 1.8], Ending(TrialState.OUT_OF_TIME, "the time for training was over"))
    write(run, 2, [2.0, 1.9], Ending(TrialState.PRUNED, "others looked more promising"))
    recorder(run)
    _, late, beaten = trials(run)
    assert (late.state, late.value) == (OptunaState.COMPLETE, 1.8)
    assert beaten.state is OptunaState.PRUNED
    assert late.user_attrs["ending"] == "out_of_time"
    assert beaten.user_attrs["reason"] == "others looked more promising"


def test_attributes_say_what_became_of_a_trial(run: RunDir) -> None:
    write(run, 1, [2.0], None)
    study = recorder(run)
    (trial,) = trials(run)[1:]
    tokens = run.records()[1].points[-1].tokens_seen
    assert trial.user_attrs == {"trial_id": "0001", "tokens_seen": tokens, "fraction": trial.user_attrs["fraction"]}
    assert 0 < trial.user_attrs["fraction"] < 1
    shutil.rmtree(run.trial("0001"))
    write(run, 1, [2.0, 1.5])
    study.write_later("0001")
    study.flush()
    (trial,) = trials(run)[1:]
    assert trial.user_attrs["tokens_seen"] > tokens
    assert (trial.user_attrs["ending"], trial.user_attrs["exported"]) == ("finished", False)


@pytest.mark.parametrize("kind", [TrialState.FINISHED, TrialState.PRUNED, TrialState.DIVERGED, TrialState.OUT_OF_TIME])
def test_the_best_trial_is_the_one_that_was_exported(run: RunDir, kind: TrialState) -> None:
    write(run, 1, [2.0, 1.8])
    write(run, 2, [2.0, 1.5, 1.7], Ending(kind, ""))
    write(run, 3, [2.0, 1.6], Ending(TrialState.OUT_OF_TIME, ""))
    recorder(run)
    recipe = run.read_search().recipe
    record_export(run, recipe, "0002")
    study = opened(run)
    assert study.best_trial.number == 2
    assert study.best_value == 1.5
    assert study.user_attrs["exported"] == "0002"
    assert study.user_attrs["base_eval_loss"] == BASE_LOSS
    assert [trial.user_attrs["exported"] for trial in study.trials[1:]] == [False, True, False]
    # A search that goes on appends to it, and another export may follow.
    write(run, 4, [1.4])
    recorder(run)
    assert aside(run) == []
    assert [trial.number for trial in trials(run)] == [0, 1, 2, 3, 4]
    record_export(run, recipe, "0004")
    assert opened(run).best_trial.number == 4
    assert trials(run)[2].state is state_of(kind, 1.5)


def test_the_study_is_named_by_the_run_and_keeps_its_name_where_the_run_moves(tmp_path: Path, run: RunDir) -> None:
    write(run, 1, [2.0])
    recorder(run)
    assert opened(run).study_name == "run"
    moved = RunDir(run.path.rename(tmp_path / "other"))
    recorder(moved)
    assert opened(moved).study_name == "run"
    assert aside(moved) == []
