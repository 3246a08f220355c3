import math
import shutil
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import Event, Notice, TrialEnded, TrialEvaluated, TrialPaused, TrialStarted
from orchestrator.controller.failure_policy import (
    DIED,
    MOST_DEATHS,
    MOST_FAILURES_IN_A_ROW,
    MOST_PROXY_ERRORS,
    ExitKind,
    TrialExit,
)
from orchestrator.controller.trial_request import TrialRequest
from orchestrator.scheduling import evidence
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from search_spaces.schema import Recipe
from tests.support.checkpoint_dirs import write_checkpoint
from tests.support.fake_search import (
    BASE_LOSS,
    Clock,
    begin,
    evaluate,
    finish,
    leave,
    make_controller,
    make_search,
    point,
    record,
    run_base,
    run_probe,
    run_trial,
)
from trials.records.checkpoints import whole_checkpoints
from trials.records.trial_dir import Ending, Origin, TrialDir, read_trial
from trials.state import TrialState

FULL = [(100, 2.0), (300, 1.5), (900, 1.0)]


@pytest.fixture(autouse=True)
def _any_trial_may_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trials too, which are never paused in a search with time for so many (test_evidence.py)."""
    monkeypatch.setattr(evidence, "_ROOM", math.inf)


def states(run: RunDir) -> list[OptunaState]:
    return [trial.state for trial in optuna.load_study(study_name=None, storage=run.study_url).trials[1:]]


def test_starting_points_run_to_the_end(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search, slots=3)
    run_base(run, controller)
    start, rival = begin(controller), begin(controller)
    evaluate(run, controller, rival, 1.0, 300)
    assert start.origin is Origin.START
    assert evaluate(run, controller, start, 2.9, 300)
    assert evaluate(run, controller, start, 2.8, 600)


def test_a_complete_trial_is_never_stopped(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    run_base(run, controller)
    run_trial(run, controller, FULL)
    hopeless = begin(controller)
    assert evaluate(run, controller, hopeless, 9.0, 893)  # steps don't end where tokens do


def test_an_unfinished_base_is_evaluated_again(run: RunDir, search: Search) -> None:
    begin(make_controller(run, search))
    again = begin(make_controller(run, search))
    assert again.origin is Origin.BASE


def test_time_is_over_before_the_reserve(run: RunDir, search: Search) -> None:
    clock = Clock()
    controller = make_controller(run, search, clock=clock)
    run_base(run, controller)
    running = begin(controller)
    clock.forward(3000)
    assert controller.suggest() == "over"
    assert not controller.should_stop
    clock.forward(301)
    assert controller.should_stop
    leave(controller, running)
    ending = run.records()[-1].ending
    assert ending is not None
    assert ending.reason == "the time for training was over"


def test_the_number_of_trials_is_limited(run: RunDir, small_recipe: Recipe) -> None:
    settings = small_recipe.search.model_copy(update={"trials": 2})
    search = make_search(small_recipe.model_copy(update={"search": settings}))
    controller = make_controller(run, search)
    run_base(run, controller)
    run_trial(run, controller, FULL)
    run_trial(run, controller, FULL)
    assert controller.suggest() == "over"


def test_trials_that_say_why_they_failed_are_counted_each(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search, slots=MOST_FAILURES_IN_A_ROW)
    run_base(run, controller)
    for request in [begin(controller) for _ in range(MOST_FAILURES_IN_A_ROW)]:
        TrialDir(run.trial(request.trial_id)).end(Ending(TrialState.FAILED, "ValueError: of its own"))
        leave(controller, request, died=True)
    assert controller.suggest() == "over"


def test_disk_is_bounded_by_the_best_adapters(run: RunDir, small_recipe: Recipe) -> None:
    settings = small_recipe.search.model_copy(update={"keep_adapters": 2, "rungs": 0})
    search = make_search(small_recipe.model_copy(update={"search": settings}))
    controller = make_controller(run, search, slots=2)
    run_base(run, controller)
    running = begin(controller)
    evaluate(run, controller, running, 9.0, 100)
    for loss in (2.0, 1.0, 3.0, 1.5):
        run_trial(run, controller, [(900, loss)])
    kept = {record.id: record.best_eval_loss for record in run.records() if record.has_adapter}
    assert kept == {running.trial_id: 9.0, "0003": 1.0, "0005": 1.5}


@pytest.mark.parametrize("kind", [TrialState.FAILED, TrialState.OUT_OF_MEMORY])
def test_when_the_base_fails_the_search_is_over(run: RunDir, search: Search, kind: TrialState) -> None:
    events: list[Event] = []
    controller = make_controller(run, search, events=events)
    finish(run, controller, begin(controller), kind)
    assert controller.suggest() == "over"
    assert any(
        isinstance(event, Notice) and f"the base model's evaluation failed with: made up: {kind.value}" in event.text
        for event in events
    )
    resumed = make_controller(run, search)
    run_base(run, resumed)
    assert run.records()[0].ending == Ending(TrialState.FINISHED, "made up: finished")


def test_failing_again_and_again_ends_the_search(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    run_base(run, controller)
    for kind in [TrialState.FAILED] * 4 + [TrialState.FINISHED] + [TrialState.FAILED] * 4:
        finish(run, controller, begin(controller), kind)
    finish(run, controller, last := begin(controller), TrialState.FAILED)
    assert controller.suggest() == "over"
    assert controller.gave_up is not None
    assert f"5 trials in a row failed, the last one, {last.trial_id}, with: made up: failed (see " in controller.gave_up


def test_an_error_of_what_speaks_for_a_trial_is_not_the_trial_s(run: RunDir, search: Search) -> None:
    clock, events = Clock(), list[Event]()
    controller = make_controller(run, search, clock=clock, events=events)
    run_base(run, controller)
    spoken_for = begin(controller)
    for _ in range(MOST_PROXY_ERRORS - 1):
        controller.on_trial_end(spoken_for.trial_id, TrialExit(ExitKind.PROXY_ERROR, "OSError: no threads left"))
        assert controller.suggest() == "wait"  # what is short may come back
        clock.forward(60)
        assert begin(controller).trial_id == spoken_for.trial_id
    assert evaluate(run, controller, spoken_for, 2.0, 100)
    controller.on_trial_end(spoken_for.trial_id, TrialExit(ExitKind.PROXY_ERROR, "OSError: no threads left"))
    clock.forward(60)
    assert begin(controller).trial_id == spoken_for.trial_id
    assert read_trial(spoken_for.folder).ending is None
    assert controller.gave_up is None
    said = [event.text for event in events if isinstance(event, Notice) and "no threads left" in event.text]
    assert len(said) == 1


def test_a_trial_alone_with_such_errors_is_set_aside_and_has_not_failed(run: RunDir, search: Search) -> None:
    clock = Clock()
    controller = make_controller(run, search, clock=clock)
    run_base(run, controller)
    spoken_for, other = begin(controller), begin(controller)
    for number in range(MOST_PROXY_ERRORS):
        evaluate(run, controller, other, 2.0, 10 * (number + 1))
        controller.on_trial_end(spoken_for.trial_id, TrialExit(ExitKind.PROXY_ERROR, "OSError: no"))
        clock.forward(10)
        if number < MOST_PROXY_ERRORS - 1:
            assert begin(controller).trial_id == spoken_for.trial_id
    ending = read_trial(spoken_for.folder).ending
    assert ending is not None
    assert ending.kind is TrialState.PRUNED
    assert "through no fault of its own" in ending.reason
    assert "OSError: no" in ending.reason


@pytest.mark.parametrize("of_the_base", [True, False])
def test_if_what_speaks_for_trials_fails_every_time_the_search_gives_up_and_says_why(
    run: RunDir, search: Search, *, of_the_base: bool
) -> None:
    clock = Clock()
    controller = make_controller(run, search, clock=clock)
    if not of_the_base:
        run_base(run, controller)
    for _ in range(MOST_PROXY_ERRORS):
        request = begin(controller)
        controller.on_trial_end(request.trial_id, TrialExit(ExitKind.PROXY_ERROR, "ImportError: no tune"))
        clock.forward(60)
    assert controller.suggest() == "over"
    assert controller.gave_up is not None
    assert "ImportError: no tune" in controller.gave_up
    assert not [record for record in run.records() if record.ending is not None and record.id != "0000"]


def test_a_base_that_is_evaluated_and_was_not_heard_of_is_not_evaluated_again(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    base = begin(controller)
    record(TrialDir(base.folder), point(BASE_LOSS, 0), base=True)
    TrialDir(base.folder).end(Ending(TrialState.FINISHED, "made up: finished"))
    controller.on_trial_end(base.trial_id, TrialExit(ExitKind.PROXY_ERROR, "wandb.Error: no"))
    run_probe(controller)
    assert begin(controller).config.base_eval_loss == BASE_LOSS


def test_trouble_with_reporting_is_said_once_a_session(run: RunDir, search: Search) -> None:
    events: list[Event] = []
    controller = make_controller(run, search, events=events)
    for text in ("no network", "no network", "still none"):
        controller.on_trouble("W&B", text)
    controller.on_trouble("TensorBoard", "disk full")
    said = [event.text for event in events if isinstance(event, Notice)]
    assert [text.split(" (")[0] for text in said] == ["warning: W&B: no network", "warning: TensorBoard: disk full"]


def test_an_evaluation_that_nobody_was_asked_about_reaches_the_study(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    run_base(run, controller)
    request = begin(controller)
    assert evaluate(run, controller, request, 2.0, 100)
    record(TrialDir(run.trial(request.trial_id)), point(9.0, 200, best=2.0))
    finish(run, controller, request, TrialState.DIVERGED)
    trial = optuna.load_study(study_name=None, storage=run.study_url).trials[1]
    assert trial.intermediate_values == {100: 2.0, 200: 2.0}
    assert trial.state is OptunaState.PRUNED


def test_trials_remember_the_rows_of_the_search(run: RunDir, search: Search) -> None:
    controller = make_controller(run, replace(search, data={"fingerprint": "abc"}))
    begin(controller)
    assert [record.fingerprint for record in run.records()] == ["abc"]


def test_base_then_speed_then_starting_points_then_proposals(run: RunDir, search: Search) -> None:
    events: list[Event] = []
    controller = make_controller(run, search, slots=2, events=events)
    run_base(run, controller)
    begin(controller)
    begin(controller)
    started = [(e.trial_id, e.origin, e.name) for e in events if isinstance(e, TrialStarted)]
    assert started == [
        ("0000", Origin.BASE, "base"),
        ("probe", Origin.PROBE, "probe"),
        ("0001", Origin.START, "usual"),
        ("0002", Origin.PROPOSED, "proposed"),
    ]
    assert [record.id for record in run.records()] == ["0000", "0001", "0002"]
    assert not (run.path / "probe").exists()


def test_nothing_runs_beside_what_measures_the_speed(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search, slots=2)
    base = begin(controller)
    assert controller.suggest() == "wait"
    evaluate(run, controller, base, BASE_LOSS, 0)
    finish(run, controller, base, TrialState.FINISHED)
    begin(controller)
    assert controller.suggest() == "wait"


def test_no_more_trials_at_once_than_slots(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search, slots=2)
    run_base(run, controller)
    first = begin(controller)
    begin(controller)
    assert controller.suggest() == "wait"
    finish(run, controller, first, TrialState.FINISHED)
    assert isinstance(controller.suggest(), TrialRequest)


def test_trials_know_the_base_loss_and_keep_checkpoints(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    run_base(run, controller)
    config = begin(controller).config
    assert config.base_eval_loss == BASE_LOSS
    assert (config.machine.checkpoint_evaluations, config.machine.keep_checkpoints) == (True, 1)


def test_full_trials_are_shortened_so_that_enough_of_them_fit(run: RunDir, small_recipe: Recipe) -> None:
    settings = small_recipe.search.model_copy(update={"full_trials": 6, "reserve": "10m"})
    recipe = small_recipe.model_copy(update={"search": settings})
    counted = {"train": {"rows": 90, "tokens": 900}}
    search = replace(make_search(recipe, seconds=660), full_tokens=3000, data=counted)
    controller = make_controller(run, search, slots=1)
    run_base(run, controller)  # 100 tokens a second
    config = begin(controller).config
    assert controller.search.full_tokens == run.read_search().full_tokens == 1000
    assert config.hyperparameters.train_tokens == 1000
    # Resumed, it's as long as it was: the speed isn't measured again.
    again = make_controller(run, run.read_search(), slots=1)
    assert again.search.full_tokens == 1000
    assert begin(again).trial_id == "0001"


def test_a_trial_behind_the_others_pauses(run: RunDir, search: Search) -> None:
    events: list[Event] = []
    controller = make_controller(run, search, events=events)
    run_base(run, controller)
    run_trial(run, controller, [(300, 1.5), (600, 1.2), (900, 1.0)])
    worse = begin(controller)
    write_checkpoint(worse.folder, 3)
    assert not evaluate(run, controller, worse, 2.9, 300)
    leave(controller, worse)
    assert read_trial(worse.folder).ending is None
    assert whole_checkpoints(worse.folder)
    assert [type(event) for event in events][-1] is TrialPaused
    assert begin(controller).trial_id != worse.trial_id
    assert states(run) == [OptunaState.COMPLETE, OptunaState.RUNNING, OptunaState.RUNNING]


def test_what_is_paused_when_time_is_over_ends_as_pruned(run: RunDir, search: Search) -> None:
    clock = Clock()
    controller = make_controller(run, search, clock=clock)
    run_base(run, controller)
    run_trial(run, controller, [(300, 1.5), (600, 1.2), (900, 1.0)])
    paused = begin(controller)
    write_checkpoint(paused.folder, 3)
    assert not evaluate(run, controller, paused, 2.9, 300)
    leave(controller, paused)
    clock.forward(3100)
    assert controller.suggest() == "over"
    controller.close()
    record = read_trial(paused.folder)
    assert record.ending is not None
    assert record.ending.kind is TrialState.PRUNED
    assert "paused at 300 tokens" in record.ending.reason
    assert not whole_checkpoints(paused.folder)
    assert states(run) == [OptunaState.COMPLETE, OptunaState.PRUNED]


def test_an_interrupted_search_leaves_its_trials_to_go_on(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search, slots=3)
    run_base(run, controller)
    cut_off = begin(controller)
    evaluate(run, controller, cut_off, 2.0, 300)
    write_checkpoint(cut_off.folder, 3)
    controller.interrupt()
    assert controller.should_stop
    assert controller.suggest() == "over"
    controller.close()
    assert read_trial(cut_off.folder).ending is None
    again = begin(make_controller(run, run.read_search(), slots=3))
    assert (again.trial_id, again.resumes) == (cut_off.trial_id, True)
    assert states(run) == [OptunaState.RUNNING]


def test_a_trial_that_was_cut_off_goes_on_under_its_own_name(run: RunDir, search: Search) -> None:
    first = make_controller(run, search, slots=2)
    run_base(run, first)
    cut_off = begin(first)
    evaluate(run, first, cut_off, 0.9, 300)
    write_checkpoint(cut_off.folder, 3)
    evaluate(run, first, cut_off, 0.8, 600)  # after its last checkpoint
    # The process dies here; nobody closes anything.
    second = make_controller(run, run.read_search(), slots=2)
    again = begin(second)
    assert (again.trial_id, again.config, again.resumes) == (cut_off.trial_id, cut_off.config, True)
    assert [p.tokens_seen for p in read_trial(again.folder).points] == [300]
    evaluate(run, second, again, 0.8, 600)
    evaluate(run, second, again, 0.7, 900)
    finish(run, second, again, TrialState.FINISHED)
    study = optuna.load_study(study_name=None, storage=run.study_url)
    assert study.trials[1].intermediate_values == {300: 0.9, 600: 0.8, 900: 0.7}
    assert states(run) == [OptunaState.COMPLETE]
    assert run.read_search().deadline == search.deadline


def test_what_never_got_a_folder_counts_for_nothing_and_its_id_is_given_again(run: RunDir, search: Search) -> None:
    first = make_controller(run, search, slots=3)
    run_base(run, first)
    begin(first)
    lost = begin(first)
    shutil.rmtree(lost.folder)  # it died before it could write the folder
    second = make_controller(run, run.read_search(), slots=3)
    assert [begin(second).trial_id for _ in range(2)] == ["0001", lost.trial_id]
    assert states(run) == [OptunaState.RUNNING] * 2


def test_a_trial_whose_process_died_goes_on_until_it_is_its_own_doing(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    run_base(run, controller)
    dead = begin(controller)
    for _ in range(MOST_DEATHS - 1):
        leave(controller, dead, died=True)
        assert begin(controller).trial_id == dead.trial_id
    assert read_trial(dead.folder).ending is None
    leave(controller, dead, died=True)
    ending = read_trial(dead.folder).ending
    assert ending is not None
    assert ending.kind is TrialState.FAILED
    assert states(run) == [OptunaState.FAIL]


def test_an_evaluation_clears_a_trial_of_the_suspicion(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    run_base(run, controller)
    dead = begin(controller)
    for tokens in (100, 200, 300, 400):
        leave(controller, dead, died=True)
        assert begin(controller).trial_id == dead.trial_id
        evaluate(run, controller, dead, 2.0, tokens)
    assert read_trial(dead.folder).ending is None


def test_those_who_died_together_go_on_one_after_the_other(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search, slots=3)
    run_base(run, controller)
    together = [begin(controller) for _ in range(3)]
    for request in together:
        leave(controller, request, died=True)
    first, other = begin(controller), begin(controller)
    assert first.trial_id == together[0].trial_id
    assert other.trial_id not in {request.trial_id for request in together}


def test_a_base_whose_process_died_is_evaluated_again(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    for _ in range(2):
        controller.on_trial_end(begin(controller).trial_id, DIED)
    run_base(run, controller)
    assert begin(controller).trial_id == "0001"


def test_a_base_whose_process_dies_every_time_ends_the_search(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    for _ in range(3):
        controller.on_trial_end(begin(controller).trial_id, DIED)
    assert controller.suggest() == "over"


def test_events_tell_the_whole_story(run: RunDir, search: Search) -> None:
    events: list[Event] = []
    controller: SearchController = make_controller(run, search, events=events)
    run_base(run, controller)
    run_trial(run, controller, FULL)
    kinds = [type(event) for event in events if not isinstance(event, Notice)]
    calibrating = [TrialStarted, TrialEvaluated, TrialEnded] + [TrialStarted] + [TrialEvaluated] * 2 + [TrialEnded]
    assert kinds == [*calibrating, TrialStarted, *[TrialEvaluated] * 3, TrialEnded]


def test_a_trial_has_no_checkpoints_when_it_has_ended(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search, slots=3)
    run_base(run, controller)
    pruned, cut_off = begin(controller), begin(controller)
    for request in (pruned, cut_off):
        write_checkpoint(request.folder, 1)
    finish(run, controller, pruned, TrialState.PRUNED)
    controller.close()
    assert not (pruned.folder / "checkpoints").exists()
    assert [checkpoint.step for checkpoint in whole_checkpoints(cut_off.folder)] == [1]


def test_paused_trials_are_bounded(run: RunDir, small_recipe: Recipe) -> None:
    settings = small_recipe.search.model_copy(update={"keep_paused": 2})
    search = make_search(small_recipe.model_copy(update={"search": settings}))
    controller = make_controller(run, search, slots=1)
    run_base(run, controller)
    run_trial(run, controller, FULL)
    for loss in (2.5, 2.9, 2.6, 2.7):
        request = begin(controller)
        write_checkpoint(request.folder, 3)
        assert not evaluate(run, controller, request, loss, 300), loss
        leave(controller, request)
    open_ones = [record.best_eval_loss for record in run.records() if record.ending is None]
    assert open_ones == [2.5, 2.6]
    assert len(list(run.path.glob("trials/*/checkpoints"))) == 2


def test_trials_are_told_where_they_are_scored_if_that_is_asked_for(run: RunDir, small_recipe: Recipe) -> None:
    settings = small_recipe.evaluation.model_copy(update={"score_rows": 8})
    search = make_search(small_recipe.model_copy(update={"evaluation": settings}))
    controller = make_controller(run, search)
    run_base(run, controller)
    assert begin(controller).config.score_at_tokens == (100, 300)


def test_trials_are_told_nothing_of_scores_if_none_are_asked_for(run: RunDir, search: Search) -> None:
    controller = make_controller(run, search)
    run_base(run, controller)
    assert begin(controller).config.score_at_tokens == ()


def test_a_study_that_is_damaged_is_made_anew_from_the_folders(run: RunDir, search: Search) -> None:
    first = make_controller(run, search, slots=3)
    run_base(run, first)
    run_trial(run, first, FULL)
    finish(run, first, begin(first), TrialState.OUT_OF_MEMORY)
    cut_off = begin(first)
    evaluate(run, first, cut_off, 1.9, 300)
    before = optuna.load_study(study_name=None, storage=run.study_url).trials
    (run.path / "study.db").write_bytes(b"half a file")
    second = make_controller(run, run.read_search(), slots=3)
    after = optuna.load_study(study_name=None, storage=run.study_url).trials
    for one, other in zip(before, after, strict=True):
        assert (one.state, one.params, one.value) == (other.state, other.params, other.value)
        assert (one.intermediate_values, one.constraints) == (other.intermediate_values, other.constraints)
    assert (run.path / "study.db.broken-1").read_bytes() == b"half a file"
    assert begin(second).trial_id not in {record.id for record in run.records() if record.ending}


def test_what_the_study_was_not_told_yet_is_told_after_a_crash(run: RunDir, search: Search) -> None:
    first = make_controller(run, search, slots=3)
    run_base(run, first)
    complete, paused = (first.suggest() for _ in range(2))
    assert isinstance(complete, TrialRequest)
    assert isinstance(paused, TrialRequest)
    for request, losses in ((complete, FULL), (paused, FULL[:1])):
        for tokens, loss in losses:
            record(TrialDir(request.folder), point(loss, tokens))
            first.on_result(request.trial_id, point(loss, tokens))
    TrialDir(complete.folder).end(Ending(TrialState.FINISHED, "made up"))
    first.on_trial_end(complete.trial_id)
    assert states(run) == []  # there was no time for it
    make_controller(run, run.read_search(), slots=3)
    told = optuna.load_study(study_name=None, storage=run.study_url).trials[1:]
    assert [trial.state for trial in told] == [OptunaState.COMPLETE, OptunaState.RUNNING]
    assert [dict(trial.intermediate_values) for trial in told] == [dict(FULL), dict(FULL[:1])]
    assert not (run.path / "study.db.broken-1").exists()


def test_a_study_that_takes_an_open_trial_for_ended_is_made_anew(run: RunDir, search: Search) -> None:
    first = make_controller(run, search)
    run_base(run, first)
    cut_off = begin(first)
    study = optuna.load_study(study_name=None, storage=run.study_url)
    study.tell(1, state=OptunaState.FAIL)
    assert begin(make_controller(run, run.read_search())).trial_id == cut_off.trial_id
    assert states(run) == [OptunaState.RUNNING]


def test_a_cut_off_starting_point_goes_on_before_anything_else(run: RunDir, search: Search) -> None:
    first = make_controller(run, search, slots=3)
    run_base(run, first)
    start, rival = begin(first), begin(first)
    for request, loss in ((start, 2.9), (rival, 0.5)):
        evaluate(run, first, request, loss, 300)
        write_checkpoint(request.folder, 3)
    second = make_controller(run, run.read_search(), slots=3)
    assert begin(second).trial_id == start.trial_id


@pytest.mark.parametrize("kind", [TrialState.OUT_OF_MEMORY, TrialState.DIVERGED, TrialState.FAILED])
def test_where_the_speed_cannot_be_measured_trials_begin_all_the_same(
    run: RunDir, search: Search, kind: TrialState
) -> None:
    events: list[Event] = []
    controller = make_controller(run, search, events=events)
    base = begin(controller)
    evaluate(run, controller, base, BASE_LOSS, 0)
    finish(run, controller, base, TrialState.FINISHED)
    probe = begin(controller)
    TrialDir(probe.folder).end(Ending(kind, "made up"))
    controller.on_trial_end(probe.trial_id, DIED if kind is TrialState.FAILED else TrialExit())
    if kind is TrialState.FAILED:
        for _ in range(2):
            again = begin(controller)
            assert again.trial_id == "probe"
            leave(controller, again, died=True)
    assert begin(controller).trial_id == "0001"
    assert run.read_search().shortened == 1.0
    assert any(isinstance(event, Notice) and "no trial is shortened" in event.text for event in events)


@pytest.mark.parametrize("seconds_after", [0.0, 100.0])
def test_at_the_deadline_a_search_whose_speed_is_unknown_has_no_time_for_a_trial(
    run: RunDir, search: Search, seconds_after: float
) -> None:
    clock = Clock()
    controller = make_controller(run, search, clock=clock)
    base = begin(controller)
    evaluate(run, controller, base, BASE_LOSS, 0)
    finish(run, controller, base, TrialState.FINISHED)
    probe = begin(controller)
    TrialDir(probe.folder).end(Ending(TrialState.DIVERGED, "made up"))
    controller.on_trial_end(probe.trial_id)
    running = begin(controller)
    clock.forward((search.deadline.training_ends - clock()).total_seconds() + seconds_after)
    controller.on_idle()
    budget = controller._budget_state()
    assert budget.seconds_left / budget.seconds_full == -seconds_after
    leave(controller, running)


def test_what_was_trained_again_keeps_its_evaluations_and_no_second_adapter(run: RunDir, search: Search) -> None:
    first = make_controller(run, search)
    run_base(run, first)
    cut_off = begin(first)
    evaluate(run, first, cut_off, 0.9, 300)
    write_checkpoint(cut_off.folder, 3)
    evaluate(run, first, cut_off, 0.8, 600)
    second = make_controller(run, run.read_search())
    again = begin(second)
    (before,) = again.folder.glob("before-*")
    assert (before / "adapter").exists()
    evaluate(run, second, again, 0.8, 600)
    finish(run, second, again, TrialState.FINISHED)
    assert not (before / "adapter").exists()
    assert (before / "metrics.jsonl").exists()


def test_a_search_from_before_lengths_were_measured_goes_on_as_it_was(run: RunDir, search: Search) -> None:
    first = make_controller(run, search)
    run_base(run, first)
    begin(first)
    run.write_search(replace(run.read_search(), shortened=None))
    second = make_controller(run, run.read_search())
    assert begin(second).trial_id == "0001"
    assert second.search.shortened == 1.0
