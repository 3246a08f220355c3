import numpy as np
import pytest

from orchestrator.sampling.distributions import distributions
from orchestrator.scheduling.types import BudgetState, StartNew
from orchestrator.surrogate.encoding import SpaceEncoder
from orchestrator.surrogate.feasibility import FeasibilityModel
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import Choices, Dimension, Range, SearchSettings
from tests.support.policies import PolicyWithProposer
from trials.state import TrialState

SPACE = {"learning_rate": Range(low=1e-5, high=1e-2, log=True), "lora_rank": Choices(choices=(4, 8, 16, 32))}


NONE = np.zeros((0, 2))


def model() -> FeasibilityModel:
    space = distributions(SPACE)
    return FeasibilityModel(space, SpaceEncoder(space))


def test_a_threshold_that_failures_show_is_found() -> None:
    x = np.random.default_rng(0).random((40, 2))
    failures = model()
    assert np.all(failures.predict(x) == 1)
    failures.fit(x[:30][x[:30, 0] > 0.6], NONE, x[:30][x[:30, 0] <= 0.6])
    chance = failures.predict(x)
    assert chance[30:][x[30:, 0] < 0.45].min() > 0.5
    assert chance[30:][x[30:, 0] > 0.7].max() < 0.5


def test_a_failure_by_chance_among_five_devalues_no_part_of_the_space() -> None:
    trained = np.array([[0.2, 0.3], [0.5, 0.7], [0.7, 0.0], [0.9, 1.0]])
    failures = model()
    failures.fit(np.array([[0.4, 0.5]]), NONE, trained)
    chance = failures.predict(np.random.default_rng(0).random((100, 2)))
    assert np.ptp(chance) < 0.2


def test_what_needs_as_much_memory_as_a_trial_that_had_too_little_is_excluded_and_nothing_else() -> None:
    failures = model()
    failures.fit(NONE, np.array([[0.1, 2 / 3]]), np.array([[0.5, 0.0]]))
    x = np.array([[0.9, 1.0], [0.9, 2 / 3], [0.9, 1 / 3], [0.0, 0.0]])
    assert failures.predict(x).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_of_the_last_30_of_60_proposals_few_lie_in_the_half_that_fails() -> None:
    fails = 0
    for seed in range(3):
        scheduler = PolicyWithProposer(SPACE, SearchSettings(seed=seed))
        for number in range(60):
            values = scheduler.propose(1000 * seed + number)
            # The best is right at the edge of what can be trained.
            x = np.log10(values["learning_rate"]) + 3.5
            points = () if x > 0 else ((1.0, 1.0 + x**2 + values["lora_rank"] / 100),)
            state = TrialState.FINISHED if points else TrialState.DIVERGED
            scheduler.update(TrialView(f"{number}", values, points, 1.0, state, False, 0.0))
            fails += number >= 30 and not points
    assert fails < 0.15 * 90


def test_a_proposal_is_the_same_for_the_same_seed_and_improves_with_what_is_known() -> None:
    scheduler = PolicyWithProposer(SPACE, SearchSettings())
    for number, rate in enumerate(10 ** np.linspace(-5, -2, 9)):
        loss = 1.0 + (np.log10(rate) + 3.2) ** 2
        values = {"learning_rate": float(rate), "lora_rank": (4, 8, 16, 32)[number % 4]}
        scheduler.update(TrialView(f"{number}", values, ((1.0, loss),), 1.0, TrialState.FINISHED, False, 0.0))
    rates = [scheduler.propose(seed)["learning_rate"] for seed in range(10)]
    assert scheduler.propose(0)["learning_rate"] == rates[0]
    assert np.median(np.abs(np.log10(rates) + 3.2)) < 0.4


def test_what_starts_together_differs() -> None:
    scheduler = PolicyWithProposer(SPACE, SearchSettings())
    for number, rate in enumerate(10 ** np.linspace(-5, -2, 9)):
        values = {"learning_rate": float(rate), "lora_rank": 8}
        loss = 1.0 + (np.log10(rate) + 3.2) ** 2
        scheduler.update(TrialView(f"{number}", values, ((1.0, loss),), 1.0, TrialState.FINISHED, False, 0.0))
    found = []
    for number in range(9, 15):
        found.append(scheduler.propose(number))
        scheduler.update(TrialView(f"{number}", found[-1], (), 1.0, TrialState.RUNNING, False, 0.0))
    rates = np.log10([values["learning_rate"] for values in found])
    assert np.ptp(rates) > 0.2 or len({values["lora_rank"] for values in found}) > 1


def test_where_only_some_configurations_may_be_tried_each_is_tried_once() -> None:
    only = [{"learning_rate": 1e-4, "lora_rank": 8}, {"learning_rate": 1e-3, "lora_rank": 16}]
    scheduler = PolicyWithProposer(SPACE, SearchSettings(), only)
    first = scheduler.propose(1)
    scheduler.update(TrialView("1", first, ((1.0, 1.0),), 1.0, TrialState.FINISHED, False, 0.0))
    second = scheduler.propose(2)
    assert {first["lora_rank"], second["lora_rank"]} == {8, 16}
    assert first["learning_rate"] == pytest.approx(1e-4 if first["lora_rank"] == 8 else 1e-3)


def test_a_space_of_few_choices_is_tried_through_and_then_there_is_no_more() -> None:
    space = {"lora_rank": Choices(choices=(4, 8, 16)), "effective_batch": Choices(choices=(8, 16))}
    scheduler, budget = PolicyWithProposer(space, SearchSettings()), BudgetState(9000, 9000, 1, 100, 0.1, 0)
    history = []
    while isinstance(scheduler.choose_next(budget), StartNew):
        values = scheduler.propose(len(history))
        history.append(tuple(values.values()))
        points = ((1.0, 1.0 + values["lora_rank"] / 100),)
        scheduler.update(TrialView(f"{len(history)}", values, points, 1.0, TrialState.FINISHED, False, 0.0))
    assert sorted(history) == sorted((rank, batch) for rank in (4, 8, 16) for batch in (8, 16))
    assert "every configuration has been tried" in scheduler.choose_next(budget).reason


def all_tried(space: dict[str, Dimension], slots: int, most: int) -> list[tuple[object, ...]]:
    """Configurations of a search in which each is over after one evaluation, in the order in which they were tried."""
    scheduler, budget, history = (
        PolicyWithProposer(space, SearchSettings()),
        BudgetState(9000, 9000, slots, 100, 0.1, 0),
        [],
    )
    while isinstance(scheduler.choose_next(budget), StartNew) and len(history) < most:
        values = scheduler.propose(len(history))
        history.append(tuple(values.values()))
        loss = 1.0 + abs(values.get("lora_rank", 0) - 16)
        scheduler.update(TrialView(f"{len(history)}", values, ((1.0, loss),), 1.0, TrialState.FINISHED, False, 0.0))
        if len(history) % 7 == 0:
            scheduler.refit(budget)
    return history


@pytest.mark.parametrize("slots", [1, 64])
def test_no_configuration_is_proposed_twice_however_good_it_is(slots: int) -> None:
    space = {"lora_rank": Range(low=4, high=40, log=True), "effective_batch": Choices(choices=(8, 16))}
    history = all_tried(space, slots, 200)
    assert len(set(history)) == len(history) == 74


@pytest.mark.parametrize("slots", [1, 64])
def test_a_space_too_large_to_be_listed_repeats_nothing_either(slots: int) -> None:
    space = {"lora_rank": Range(low=4, high=40, log=True), "learning_rate": Range(low=1e-5, high=1e-2, log=True)}
    history = all_tried(space, slots, 60)
    assert len(set(history)) == len(history) == 60


def test_without_a_space_there_is_one_configuration() -> None:
    assert all_tried({}, 1, 5) == [()]
