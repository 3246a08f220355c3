"""The learning rate along a trial is a coordinate, where it falls: a high rate isn't taken for a bad trial early."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from orchestrator.controller.trials import shared_scheduler
from orchestrator.sampling.distributions import distributions
from orchestrator.surrogate.encoding import SpaceEncoder
from orchestrator.surrogate.gaussian_process import Points, covariance, prior, within
from orchestrator.surrogate.model import Surrogate
from orchestrator.surrogate.rate_schedule import rate_schedule
from orchestrator.surrogate.trial_view import TrialView
from search_spaces.loader import load_recipe
from search_spaces.schema import Range
from trials.state import TrialState

SPACE = distributions({"learning_rate": Range(low=1e-5, high=1e-2, log=True)})
PARTS = np.arange(1, 10) / 9


@pytest.mark.parametrize(("scheduler", "half"), [("cosine", 0.5), ("linear", 0.5)])
def test_two_trials_have_one_coordinate_where_they_have_one_rate(scheduler: str, half: float) -> None:
    schedule = rate_schedule(scheduler, SPACE, SpaceEncoder(SPACE))
    assert schedule is not None
    low = np.log(100.0) / np.log(1000.0)
    at = schedule.coordinate(np.array([[low + np.log(2) / np.log(1000.0)], [low]]), np.array([half, 0.0]))
    assert at[0] == pytest.approx(at[1])
    assert np.all(np.isfinite(schedule.coordinate(np.array([[0.5]]), np.array([1.0]))))


@pytest.mark.parametrize("scheduler", ["constant", "constant_with_warmup"])
def test_a_rate_that_does_not_fall_is_no_coordinate(scheduler: str) -> None:
    assert rate_schedule(scheduler, SPACE, SpaceEncoder(SPACE)) is None


def test_where_all_trials_have_one_rate_it_is_no_coordinate() -> None:
    other = distributions({"lora_dropout": Range(low=0.0, high=0.3)})
    assert rate_schedule("cosine", other, SpaceEncoder(other)) is None


def test_the_covariance_within_a_trial_is_that_between_its_points() -> None:
    theta, s = prior(2)[0], np.log(PARTS)
    rate = np.linspace(1.0, 0.2, 9)
    points = Points(np.stack([np.full(9, 0.3), rate], 1), s, np.zeros(9, dtype=np.int64), rate, np.full(9, 0.3))
    assert within(theta, s[None], rate[None], rate[None])[0] == pytest.approx(covariance(theta, points, points))


def test_what_a_high_rate_adds_to_the_loss_is_shared_by_like_rates_and_gone_at_the_end() -> None:
    theta, peak, rate = prior(1)[0], np.array([0.5, 0.5, 0.0, 0.5]), np.array([1.0, 0.8, 1.0, 0.0])
    none = theta.copy()
    none[-3] = -np.inf
    points = Points(peak[:, None], np.zeros(4), np.arange(4), rate, peak)
    lift = covariance(theta, points, points) - covariance(none, points, points)
    assert lift[0, 1] == pytest.approx(np.exp(2 * theta[-3]) * 0.8)
    assert lift[0, 2] < 0.3 * lift[0, 0]
    assert lift[3] == pytest.approx(np.zeros(4), abs=1e-12)


def test_decisions_use_one_thread() -> None:
    code = """
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
import scipy.linalg
from orchestrator.surrogate.model import Surrogate
threadpool_limits(2, user_api="blas")
Surrogate({})
print({each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"})
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "{1}"


def hidden(rate: float, fraction: float) -> float:
    """A loss whose excess is the rate that the trial has now: the higher the peak, the better the end."""
    now = rate * 0.5 * (1 + np.cos(np.pi * fraction))
    return 1.0 + 40 * now + 0.1 * (1 - np.log10(rate / 1e-5) / 3)


def predicted(scheduler: str) -> float:
    """Predicted final loss of the fastest trial, a third of which is trained, after three that are complete."""
    surrogate = Surrogate(SPACE, scheduler=scheduler)
    surrogate.curve_model.base_loss = 2.0
    for number, rate in enumerate((1e-5, 1e-4, 1e-3, 1e-2), 1):
        parts = PARTS if number < 4 else PARTS[:3]
        points = tuple((float(at), hidden(rate, at)) for at in parts)
        state = TrialState.FINISHED if number < 4 else TrialState.PAUSED
        surrogate.observe(TrialView(f"{number:04d}", {"learning_rate": rate}, points, 1.0, state, False, 0.0))
    forecast = surrogate.forecast("0004")
    assert forecast is not None
    return forecast.mean


def test_what_hides_its_progress_behind_a_high_rate_is_predicted_better() -> None:
    true = hidden(1e-2, 1.0)
    assert abs(predicted("cosine") - true) < 0.9 * abs(predicted("constant") - true)


def test_trials_that_differ_in_their_schedule_have_none_in_common() -> None:
    assert shared_scheduler(load_recipe("demo", ["scheduler=linear"], environ={}).recipe) == "linear"
    mixed = load_recipe("demo", ["start.other={scheduler: constant}"], environ={}).recipe
    assert shared_scheduler(mixed) == "constant"
