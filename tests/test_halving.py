import pytest

from orchestrator.halving import judge, loss_at, rung_tokens, rungs_from_records
from orchestrator.run_folder import RunFolder
from search_spaces.schema import Recipe
from tests.searches import make_conductor, make_run, make_search, point, run_base, run_trial


def test_rungs_are_a_factor_apart_and_below_full_length() -> None:
    assert rung_tokens(900, 3, 2) == [100, 300]
    assert rung_tokens(900, 3, 0) == []
    assert rung_tokens(10, 4, 3) == [1, 1, 2]


def test_loss_at_a_rung_is_the_best_at_the_first_evaluation_there() -> None:
    points = [point(2.0, 90), point(2.5, 110, best=2.0), point(1.0, 300)]
    assert loss_at(points, 100) == 2.0
    assert loss_at(points, 300) == 1.0
    assert loss_at(points, 301) is None


@pytest.mark.parametrize(
    ("losses", "passes"),
    [
        ({"a": 1.0}, True),
        ({"a": 1.0, "b": 2.0}, True),
        ({"a": 2.0, "b": 1.0}, False),
        ({"a": 2.0, "b": 1.0, "c": 3.0, "d": 4.0, "e": 5.0}, False),
        ({"a": 2.0, "b": 1.0, "c": 3.0, "d": 4.0, "e": 5.0, "f": 6.0}, True),
        ({"a": 1.0, "b": 1.0}, True),
    ],
)
def test_the_best_third_passes_and_the_best_one_always(losses: dict[str, float], passes: bool) -> None:
    verdict = judge(losses, "a", 100, reduction_factor=3)
    assert verdict.passes is passes
    assert verdict.trials == len(losses)


def test_rungs_are_rebuilt_from_the_records(tmp_path: object, small_recipe: Recipe) -> None:
    search = make_search(small_recipe)
    run: RunFolder = make_run(tmp_path / "run", search)  # type: ignore[operator]
    conductor = make_conductor(run, search)
    run_base(run, conductor)
    run_trial(run, conductor, [(100, 2.0), (300, 1.5), (900, 1.0)])
    run_trial(run, conductor, [(105, 2.5), (310, 1.6), (900, 1.2)])
    trained = run.records()[1:]
    assert rungs_from_records(trained, [100, 300]) == {
        100: {"0001": 2.0, "0002": 2.5},
        300: {"0001": 1.5},
    }
