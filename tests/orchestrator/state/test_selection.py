import statistics
import threading

import pytest

from orchestrator.state.run_dir import RunDir
from orchestrator.state.selection import base_of, pick_best, rank
from tests.support.fake_search import point, record, row_losses, save_adapter
from trials.errors import NothingToExport
from trials.metrics.row_losses import RowLosses
from trials.records.trial_dir import Ending, Origin, TrialDir
from trials.state import TrialState


def add(
    run: RunDir, name: str, losses: list[float], *, origin: Origin = Origin.PROPOSED, ended: bool = True
) -> TrialDir:
    folder = TrialDir(run.trial(name))
    folder.begin(run.read_search().recipe.trial_config({}), origin, origin.value)
    for i, loss in enumerate(losses):
        evaluation = point(loss, 100 * (i + 1), best=min(losses[: i + 1]))
        record(folder, evaluation, base=origin is Origin.BASE)
    if ended:
        folder.end(Ending(TrialState.FINISHED, "made up"))
    return folder


def test_the_lowest_best_loss_wins_not_the_last(run: RunDir) -> None:
    add(run, "0000", [3.0], origin=Origin.BASE)
    add(run, "0001", [3.0, 1.0, 2.5])
    add(run, "0002", [2.0, 1.8, 1.5])
    assert [r.id for r in rank(run.records())] == ["0001", "0002"]
    best = pick_best(run.records())
    assert best.trial.id == "0001"
    assert best.loss == 1.0
    assert best.gain.difference == pytest.approx(2.0)
    assert base_of(run.records()) == best.base


def test_a_trial_whose_adapter_is_gone_cannot_be_exported(run: RunDir) -> None:
    add(run, "0000", [3.0], origin=Origin.BASE)
    gone = add(run, "0001", [1.0])
    add(run, "0002", [2.0])
    for file in gone.adapter.iterdir():
        file.unlink()
    assert pick_best(run.records()).trial.id == "0002"


def test_a_trial_that_was_cut_off_can_win(run: RunDir) -> None:
    add(run, "0000", [3.0], origin=Origin.BASE)
    add(run, "0001", [1.0], ended=False)
    assert pick_best(run.records()).trial.id == "0001"


def test_nothing_is_exported_that_does_not_beat_the_base(run: RunDir) -> None:
    with pytest.raises(NothingToExport, match="the base model was not evaluated"):
        pick_best(run.records())
    add(run, "0000", [3.0], origin=Origin.BASE)
    with pytest.raises(NothingToExport, match="no trial was evaluated"):
        pick_best(run.records())
    for name, loss in (("0001", 3.0), ("0002", 2.9995)):
        add(run, name, [loss])
        with pytest.raises(NothingToExport, match=f"the best trial, {name}, has eval loss {loss:.4f} and the base"):
            pick_best(run.records())


def test_a_gain_within_its_error_is_none(run: RunDir) -> None:
    add(run, "0000", [3.0], origin=Origin.BASE)
    folder = TrialDir(run.trial("0001"))
    folder.begin(run.read_search().recipe.trial_config({}), Origin.PROPOSED, "proposed")
    folder.record(point(2.9, 100), row_losses(2.9, spread=0.5), save_adapter)
    with pytest.raises(
        NothingToExport, match=r"better by 0\.1000 \(95 % -\d\.\d+ to \d\.\d+\), where an interval above 0"
    ):
        pick_best(run.records())
    folder.record(point(2.8, 200), row_losses(2.8, spread=0.01), save_adapter)
    assert pick_best(run.records()).trial.id == "0001"


@pytest.mark.parametrize(("rows", "is_enough"), [(5, False), (1000, True)])
def test_two_and_a_half_errors_are_a_clear_gain_only_on_many_rows(run: RunDir, rows: int, is_enough: bool) -> None:
    steps = [0.1 * (i % 5 - 2) for i in range(rows)]
    gain = 2.5 * statistics.stdev(steps) / rows**0.5
    for name, origin, sums in (
        ("0000", Origin.BASE, [30.0] * rows),
        ("0001", Origin.PROPOSED, [30 - 10 * (gain + step) for step in steps]),
    ):
        losses, folder = RowLosses(sums, [10] * rows), TrialDir(run.trial(name))
        folder.begin(run.read_search().recipe.trial_config({}), origin, origin.value)
        folder.record(point(losses.mean, 100), losses, None if origin is Origin.BASE else save_adapter)
    if is_enough:
        assert pick_best(run.records()).gain.difference == pytest.approx(gain)
    else:
        with pytest.raises(NothingToExport, match=r"better by 0\.1768 \(95 % -0\.0195 to 0\.3731\)"):
            pick_best(run.records())


def test_reading_the_records_never_disturbs_a_trial_that_writes(run: RunDir) -> None:
    add(run, "0000", [3.0], origin=Origin.BASE)
    folder = add(run, "0001", [2.9], ended=False)
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                assert run.records()[1].best_eval_loss is not None
            except BaseException as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(200):
            record(folder, point(2.8 - i / 1000, 200 + i))
    finally:
        stop.set()
        reader.join()
    assert not failures
    assert pick_best(run.records()).loss == pytest.approx(2.601)
