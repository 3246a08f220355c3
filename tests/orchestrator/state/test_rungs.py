from orchestrator.state.rungs import loss_at, rung_tokens
from tests.support.fake_search import point


def test_rungs_are_a_factor_apart_and_below_full_length() -> None:
    assert rung_tokens(900, 3, 2) == [100, 300]
    assert rung_tokens(900, 3, 0) == []
    assert rung_tokens(10, 4, 3) == [1, 1, 2]


def test_loss_at_a_rung_is_the_best_at_the_first_evaluation_there() -> None:
    points = [point(2.0, 90), point(2.5, 110, best=2.0), point(1.0, 300)]
    assert loss_at(points, 100) == 2.0
    assert loss_at(points, 300) == 1.0
    assert loss_at(points, 301) is None
