"""The sampler that a recipe names is really asked: within decisions, or in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest

from orchestrator.sampling import search_sampler
from orchestrator.sampling.distributions import distributions
from orchestrator.sampling.freeze_thaw_sampler import FreezeThawSampler
from orchestrator.sampling.samplers import make_sampler
from orchestrator.sampling.search_sampler import SearchSampler
from orchestrator.surrogate.model import MANY_SLOTS, Surrogate
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.schema import SAMPLERS, Choices, Range, SearchSettings
from tests.support.waiting import wait_until
from trials.errors import RecipeError
from trials.state import TrialState

SPACE = distributions(
    {
        "learning_rate": Range(low=1e-5, high=1e-2, log=True),
        "lora_dropout": Range(low=0.0, high=0.3),
        "lora_rank": Choices(choices=(4, 8, 16, 32)),
    }
)
QMC = "optuna.samplers:QMCSampler"


def loss(values: dict[str, Any]) -> float:
    return float(1.0 + (np.log10(values["learning_rate"]) + 3.5) ** 2 + values["lora_dropout"])


def sampler(name: str, slots: int = 1, seed: int = 0, **arguments: Any) -> SearchSampler:
    settings = SearchSettings(sampler=name, seed=seed, sampler_arguments=arguments)
    return SearchSampler(settings, SPACE, Surrogate(SPACE), print, slots, waits=True)


def played(asked: SearchSampler, trials: int) -> list[dict[str, Any]]:
    """Ask for trials one after another, each trained to its end."""
    found = []
    for number in range(1, trials + 1):
        values = asked.propose(number)
        assert values is not None
        found.append(values)
        view = TrialView(f"{number:04d}", values, ((1.0, loss(values)),), 1.0, TrialState.FINISHED, False, 0.0)
        asked._surrogate.observe(view)
        asked.observe(view)
    return found


@pytest.fixture
def opened() -> Iterator[list[SearchSampler]]:
    samplers: list[SearchSampler] = []
    yield samplers
    for each in samplers:
        each.close()


@pytest.mark.parametrize("name", [*(name for name in SAMPLERS if name != "gp"), QMC])
def test_the_same_seed_gives_the_same_first_proposals(name: str) -> None:
    first, again, other = (played(sampler(name, seed=seed), 6) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(set(values) == set(SPACE) for values in first)


def test_a_neighbouring_seed_gives_no_configuration_of_this_one() -> None:
    first, other = (played(sampler("freeze_thaw", seed=seed), 8) for seed in (0, 1))
    assert not [values for values in first if values in other]


@pytest.mark.parametrize("name", ["freeze_thaw", "tpe", "cmaes"])
def test_what_was_learned_decides(name: str) -> None:
    later = played(sampler(name), 40)[25:]
    by_chance = played(sampler("random"), 40)[25:]
    assert np.median([loss(values) for values in later]) < 0.8 * np.median([loss(values) for values in by_chance])


def test_cma_es_goes_on_from_generation_to_generation() -> None:
    asked = sampler("cmaes")
    played(asked, 20)
    assert asked._study is not None
    assert asked._study._finished is not None
    generations = {attrs.get("cma:generation") for attrs in asked._study._finished.system_attrs.values()}
    assert len(generations - {None}) > 2


def test_a_slow_sampler_is_asked_in_a_process_of_its_own(opened: list[SearchSampler]) -> None:
    asked = sampler("gp", n_startup_trials=4)
    opened.append(asked)
    found = played(asked, 8)
    assert asked._process is not None
    assert asked._process._process is not None
    assert len({values["learning_rate"] for values in found}) == 8
    assert min(map(loss, found[4:])) < min(map(loss, found[:4]))


def test_a_decision_does_not_wait_for_it(opened: list[SearchSampler]) -> None:
    settings = SearchSettings(sampler="gp")
    asked = SearchSampler(settings, SPACE, Surrogate(SPACE), print)
    opened.append(asked)
    found: list[dict[str, Any]] = []
    assert asked.propose(1) is None
    assert wait_until(lambda: bool(found) or bool(found.extend(filter(None, [asked.propose(1)]))), seconds=60)
    assert set(found[0]) == set(SPACE)


def test_a_process_that_ended_is_replaced_and_knows_all_trials(opened: list[SearchSampler]) -> None:
    asked = sampler("tpe", slots=MANY_SLOTS, n_startup_trials=2)
    opened.append(asked)
    played(asked, 6)
    process = asked._process._process  # type: ignore[union-attr]
    assert process is not None
    process.kill()
    process.wait()
    asked._ready.clear()
    assert asked.propose(7) is not None
    assert asked._process._process is not process  # type: ignore[union-attr]


class Dies(optuna.samplers.RandomSampler):
    """Ends its process at every proposal."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        os._exit(1)


def test_where_its_process_dies_every_time_ours_proposes_from_then_on(opened: list[SearchSampler]) -> None:
    said: list[str] = []
    settings = SearchSettings(sampler=f"{__name__}:Dies")
    asked = SearchSampler(settings, SPACE, Surrogate(SPACE), said.append, MANY_SLOTS, waits=True)
    opened.append(asked)
    assert [asked.propose(1), asked.propose(1)] == [None, None]
    assert asked.propose(1) is not None
    assert ["raised EOFError" in text for text in said] == [True]


class Broken(optuna.samplers.RandomSampler):
    """Raises at the third trial."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if trial.number == 3:
            raise ValueError("no idea")
        return super().sample_independent(study, trial, param_name, param_distribution)


@pytest.mark.parametrize("slots", [1, MANY_SLOTS])
def test_where_a_sampler_raises_ours_proposes_from_then_on(slots: int, opened: list[SearchSampler]) -> None:
    said: list[str] = []
    settings = SearchSettings(sampler=f"{__name__}:Broken")
    asked = SearchSampler(settings, SPACE, Surrogate(SPACE), said.append, slots, waits=True)
    opened.append(asked)
    found = played(asked, 5)
    assert len(found) == 5
    assert said == [f"search.sampler {__name__}:Broken raised ValueError: no idea; freeze_thaw proposes from now on"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampler": "nowhere.to:Find"}, "can't be imported"),
        ({"sampler": "optuna.samplers:Nothing"}, "can't be imported"),
        ({"sampler": "optuna:__version__"}, "is a str, no class"),
        ({"sampler": "collections:OrderedDict"}, "gives a OrderedDict"),
        ({"sampler": "tpe", "sampler_arguments": {"n_starts": 3}}, "n_starts"),
    ],
)
def test_a_sampler_that_cannot_be_made_is_one_clear_error(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=r"search\.sampler") as error:
        make_sampler(SearchSettings(**settings), 0)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["tpee", "a:", ":B", "a b:C"])
def test_a_name_that_is_no_sampler_s_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allowed: freeze_thaw, tpe, gp, cmaes, random, auto, or module:Class"):
        SearchSettings(sampler=name)


def test_ours_takes_no_arguments() -> None:
    with pytest.raises(ValueError, match="freeze_thaw takes none"):
        SearchSettings(sampler_arguments={"a": 1})


def test_a_configuration_is_repeated_only_where_no_other_is_left() -> None:
    space = distributions({"lora_rank": Choices(choices=(4, 8, 16, 32))})
    asked = SearchSampler(SearchSettings(sampler="random"), space, Surrogate(space), print)
    assert {asked.propose(number)["lora_rank"] for number in range(1, 5)} == {4, 8, 16, 32}  # type: ignore[index]


def test_starting_points_are_known_to_the_sampler() -> None:
    asked = sampler("tpe")
    values = {"learning_rate": 2e-4, "lora_dropout": 0.05, "lora_rank": 8}
    asked.begin(1, values)
    assert asked._study is not None
    trial = asked._study._study.trials[1]
    assert trial.params == values
    assert trial.state is optuna.trial.TrialState.RUNNING


def test_ours_is_a_sampler_for_any_study_of_optuna() -> None:
    study = optuna.create_study(sampler=FreezeThawSampler(SPACE, seed=3, full_steps=4))
    for _ in range(25):
        trial = study.ask(SPACE)
        for step in range(1, 4):
            trial.report(loss(trial.params) + 1.0 / step, step)
        if trial.number % 3 == 2:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, loss(trial.params))
    rates = np.log10([trial.params["learning_rate"] for trial in study.trials[12:]])
    assert np.median(np.abs(rates + 3.5)) < 0.4
    assert study.best_value < 1.1


def test_slow_ones_are_named_here_as_in_the_schema() -> None:
    assert search_sampler._SLOW in SAMPLERS
