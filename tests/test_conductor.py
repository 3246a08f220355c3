from dataclasses import replace

import optuna
from optuna.trial import TrialState

from orchestrator.conductor import MOST_FAILURES_IN_A_ROW, Assignment, Conductor, study_number, trial_id
from orchestrator.events import Event, Message, TrialEnded, TrialEvaluated, TrialStarted
from orchestrator.run_folder import RunFolder, Search
from orchestrator.study import STUDY_NAME
from search_spaces.schema import Recipe
from tests.checkpoint_case import write_checkpoint
from tests.searches import (
    BASE_LOSS,
    Clock,
    begin,
    evaluate,
    finish,
    make_conductor,
    make_search,
    point,
    record,
    run_base,
    run_trial,
)
from trials.checkpoints import whole_checkpoints
from trials.records import Ending, EndingKind, Origin, TrialFolder

FULL = [(100, 2.0), (300, 1.5), (900, 1.0)]


def states(run: RunFolder) -> list[TrialState]:
    return [trial.state for trial in optuna.load_study(study_name=STUDY_NAME, storage=run.study_url).trials]


def test_base_then_starting_points_then_proposals(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search, slots=4)
    origins = [(a.trial_id, a.origin, a.name) for a in (begin(conductor) for _ in range(3))]
    assert origins == [
        ("0000", Origin.BASE, "base"),
        ("0001", Origin.START, "usual"),
        ("0002", Origin.PROPOSED, "proposed"),
    ]
    assert [record.id for record in run.records()] == ["0000", "0001", "0002"]


def test_no_more_trials_at_once_than_slots(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search, slots=2)
    base = begin(conductor)
    begin(conductor)
    assert conductor.next_trial() == "wait"
    evaluate(run, conductor, base, BASE_LOSS, 0)
    finish(run, conductor, base, EndingKind.FINISHED)
    assert isinstance(conductor.next_trial(), Assignment)


def test_trials_learn_the_base_loss_once_it_is_known(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search)
    base, early = begin(conductor), begin(conductor)
    assert early.config.base_eval_loss is None
    evaluate(run, conductor, base, BASE_LOSS, 0)
    finish(run, conductor, base, EndingKind.FINISHED)
    assert begin(conductor).config.base_eval_loss == BASE_LOSS


def test_a_trial_behind_at_a_rung_is_stopped_with_the_reason(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search)
    run_base(run, conductor)
    run_trial(run, conductor, FULL)
    stopped = run_trial(run, conductor, [(50, 9.0), (100, 2.5), (300, 0.1)])
    stopped_record = next(r for r in run.records() if r.id == stopped.trial_id)
    assert stopped_record.ending is not None
    assert stopped_record.ending.kind is EndingKind.PRUNED
    assert "doesn't pass the rung at 100 tokens with 2.5000, place 2 of 2" in stopped_record.ending.reason
    assert stopped_record.tokens_seen == 100
    assert states(run) == [TrialState.COMPLETE, TrialState.PRUNED]


def test_starting_points_run_to_the_end(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search, slots=3)
    run_base(run, conductor)
    start, rival = begin(conductor), begin(conductor)
    assert evaluate(run, conductor, rival, 1.0, 100)
    assert start.origin is Origin.START
    assert evaluate(run, conductor, start, 2.9, 100)
    assert evaluate(run, conductor, start, 2.8, 300)


def test_nothing_stays_running_when_the_search_closes(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search, slots=3)
    run_base(run, conductor)
    begin(conductor)
    begin(conductor)
    conductor.interrupt()
    assert conductor.must_stop
    assert conductor.next_trial() == "over"
    conductor.close()
    assert TrialState.RUNNING not in states(run)
    assert all(record.ending is None for record in run.records() if record.origin is not Origin.BASE)


def test_a_resumed_search_keeps_rungs_base_and_deadline(run: RunFolder, search: Search) -> None:
    first = make_conductor(run, search, slots=2)
    run_base(run, first)
    run_trial(run, first, FULL)
    cut_off = begin(first)
    evaluate(run, first, cut_off, 1.9, 100)
    # The process dies here; nobody closes anything.
    events: list[Event] = []
    second = make_conductor(run, run.read_search(), slots=2, events=events)
    retried = begin(second)
    assert retried.config.hyperparameters == cut_off.config.hyperparameters
    assert retried.config.base_eval_loss == BASE_LOSS
    assert retried.trial_id not in {"0000", "0001", cut_off.trial_id}
    evaluate(run, second, retried, 1.95, 100)
    verdicts = next(event.rungs for event in events if isinstance(event, TrialEvaluated))
    assert [(verdict.place, verdict.trials) for verdict in verdicts] == [(2, 3)]
    assert run.read_search().deadline == search.deadline


def test_an_unfinished_base_is_evaluated_again(run: RunFolder, search: Search) -> None:
    begin(make_conductor(run, search))
    again = begin(make_conductor(run, search))
    assert again.origin is Origin.BASE


def test_time_is_over_before_the_reserve(run: RunFolder, search: Search) -> None:
    clock = Clock()
    conductor = make_conductor(run, search, clock=clock)
    run_base(run, conductor)
    running = begin(conductor)
    clock.forward(3000)
    assert conductor.next_trial() == "over"
    assert not conductor.must_stop
    clock.forward(301)
    assert conductor.must_stop
    conductor.on_end(running.trial_id)
    ending = run.records()[-1].ending
    assert ending is not None
    assert ending.reason == "the time for training was over"


def test_no_trial_starts_that_cannot_reach_its_first_evaluation(run: RunFolder, search: Search) -> None:
    clock = Clock()
    conductor = make_conductor(run, search, clock=clock)
    run_base(run, conductor)
    run_trial(run, conductor, FULL)  # first evaluated after 10 seconds
    clock.forward(2988)
    begin(conductor)
    clock.forward(3)
    assert conductor.next_trial() == "over"


def test_the_number_of_trials_is_limited(run: RunFolder, small_recipe: Recipe) -> None:
    settings = small_recipe.search.model_copy(update={"trials": 2})
    search = make_search(small_recipe.model_copy(update={"search": settings}))
    conductor = make_conductor(run, search)
    run_base(run, conductor)
    run_trial(run, conductor, FULL)
    run_trial(run, conductor, FULL)
    assert conductor.next_trial() == "over"


def test_a_process_that_died_is_a_failure(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search)
    run_base(run, conductor)
    dead = begin(conductor)
    conductor.on_end(dead.trial_id, died=True)
    ending = run.records()[-1].ending
    assert ending is not None
    assert ending.kind is EndingKind.FAILED
    assert states(run) == [TrialState.FAIL]


def test_trials_that_die_together_are_one_failure(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search, slots=3)
    run_base(run, conductor)
    for _ in range(MOST_FAILURES_IN_A_ROW):
        for assignment in [begin(conductor) for _ in range(3)]:
            conductor.on_end(assignment.trial_id, died=True)
    assert conductor.next_trial() == "over"
    assert len(run.records()) == 1 + 3 * MOST_FAILURES_IN_A_ROW


def test_trials_that_say_why_they_failed_are_counted_each(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search, slots=MOST_FAILURES_IN_A_ROW)
    run_base(run, conductor)
    for assignment in [begin(conductor) for _ in range(MOST_FAILURES_IN_A_ROW)]:
        TrialFolder(run.trial(assignment.trial_id)).end(Ending(EndingKind.FAILED, "ValueError: of its own"))
        conductor.on_end(assignment.trial_id, died=True)
    assert conductor.next_trial() == "over"


def test_disk_is_bounded_by_the_best_adapters(run: RunFolder, small_recipe: Recipe) -> None:
    settings = small_recipe.search.model_copy(update={"keep_adapters": 2, "rungs": 0})
    search = make_search(small_recipe.model_copy(update={"search": settings}))
    conductor = make_conductor(run, search, slots=2)
    run_base(run, conductor)
    running = begin(conductor)
    evaluate(run, conductor, running, 9.0, 100)
    for loss in (2.0, 1.0, 3.0, 1.5):
        run_trial(run, conductor, [(900, loss)])
    kept = {record.id: record.best_eval_loss for record in run.records() if record.has_adapter}
    assert kept == {running.trial_id: 9.0, "0003": 1.0, "0005": 1.5}


def test_events_tell_the_whole_story(run: RunFolder, search: Search) -> None:
    events: list[Event] = []
    conductor: Conductor = make_conductor(run, search, events=events)
    run_base(run, conductor)
    run_trial(run, conductor, FULL)
    kinds = [type(event) for event in events]
    assert kinds == [TrialStarted, TrialEvaluated, TrialEnded] + [TrialStarted] + [TrialEvaluated] * 3 + [TrialEnded]


def test_trial_ids_and_study_numbers_are_one_apart() -> None:
    assert trial_id(0) == "0001"
    assert study_number(trial_id(41)) == 41


def test_when_the_base_fails_the_search_is_over(run: RunFolder, search: Search) -> None:
    events: list[Event] = []
    conductor = make_conductor(run, search, events=events)
    finish(run, conductor, begin(conductor), EndingKind.FAILED)
    assert conductor.next_trial() == "over"
    assert any(isinstance(event, Message) and "the base model failed" in event.text for event in events)
    resumed = make_conductor(run, search)
    run_base(run, resumed)
    assert run.records()[0].ending == Ending(EndingKind.FINISHED, "made up: finished")


def test_failing_again_and_again_ends_the_search(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search)
    run_base(run, conductor)
    for kind in [EndingKind.FAILED] * 4 + [EndingKind.FINISHED] + [EndingKind.FAILED] * 4:
        finish(run, conductor, begin(conductor), kind)
    finish(run, conductor, begin(conductor), EndingKind.FAILED)
    assert conductor.next_trial() == "over"


def test_an_evaluation_that_nobody_was_asked_about_reaches_the_study(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search)
    run_base(run, conductor)
    assignment = begin(conductor)
    assert evaluate(run, conductor, assignment, 2.0, 100)
    record(TrialFolder(run.trial(assignment.trial_id)), point(9.0, 200, best=2.0))
    finish(run, conductor, assignment, EndingKind.DIVERGED)
    trial = optuna.load_study(study_name=STUDY_NAME, storage=run.study_url).trials[0]
    assert trial.intermediate_values == {100: 2.0, 200: 2.0}
    assert trial.state is TrialState.PRUNED


def test_trials_are_told_where_they_are_scored_if_that_is_asked_for(run: RunFolder, small_recipe: Recipe) -> None:
    settings = small_recipe.evaluation.model_copy(update={"score_rows": 8})
    search = make_search(small_recipe.model_copy(update={"evaluation": settings}))
    conductor = make_conductor(run, search)
    assert begin(conductor).config.score_at_tokens == ()  # the base is scored in any case
    assert begin(conductor).config.score_at_tokens == (100, 300)


def test_trials_are_told_nothing_of_scores_if_none_are_asked_for(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, search)
    assert [begin(conductor).config.score_at_tokens for _ in range(2)] == [(), ()]


def test_a_trial_keeps_its_newest_checkpoint_while_it_runs_and_none_when_it_has_ended(
    run: RunFolder, search: Search
) -> None:
    conductor = make_conductor(run, search, slots=3)
    run_base(run, conductor)
    pruned, cut_off = begin(conductor), begin(conductor)
    assert pruned.config.machine.keep_checkpoints == 1
    for assignment in (pruned, cut_off):
        write_checkpoint(run.trial(assignment.trial_id), 1)
    finish(run, conductor, pruned, EndingKind.PRUNED)
    conductor.close()
    assert not (run.trial(pruned.trial_id) / "checkpoints").exists()
    assert [checkpoint.step for checkpoint in whole_checkpoints(run.trial(cut_off.trial_id))] == [1]


def test_trials_remember_the_rows_of_the_search(run: RunFolder, search: Search) -> None:
    conductor = make_conductor(run, replace(search, data={"fingerprint": "abc"}))
    begin(conductor)
    assert [record.fingerprint for record in run.records()] == ["abc"]
