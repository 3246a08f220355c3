import subprocess
import sys

import numpy as np
import pytest

from orchestrator.sampling.distributions import distributions
from orchestrator.surrogate.curve_model import MOST_POINTS, LearningCurveModel
from orchestrator.surrogate.encoding import SpaceEncoder
from orchestrator.surrogate.gaussian_process import Points, covariance, fit, prior, within
from search_spaces.schema import Choices, Range

SPACE = distributions(
    {
        "learning_rate": Range(low=1e-5, high=1e-2, log=True),
        "lora_rank": Choices(choices=(4, 8, 16, 32)),
        "target_modules": Choices(choices=(["q_proj"], ["q_proj", "v_proj"])),
        "epochs": Range(low=1, high=3),
    }
)
VALUES = {"learning_rate": 1e-4, "lora_rank": 8, "target_modules": "q_proj", "epochs": 2}


def told(count: int, late: bool = False) -> tuple[LearningCurveModel, dict[str, dict[str, object]]]:
    """An outlook that saw `count` whole trials, whose last losses follow the early ones, or (late) turn them round."""
    curve_model, all_values = LearningCurveModel(SpaceEncoder(SPACE)), {}
    for number in range(count):
        values = {**VALUES, "learning_rate": 1e-5 * 1000 ** (number / count), "epochs": 1 + number % 3}
        early = 2.0 - number / count
        end = 0.5 * (3.0 - early if late else early)
        curve_model.observe(f"{number}", values, [(1 / 9, early), (1 / 3, (early + end) / 2), (1.0, end)], 0.0)
        all_values[f"{number}"] = values
    curve_model.fit()
    return curve_model, all_values


def test_coordinates_are_between_0_and_1_and_draws_are_configurations_of_the_space() -> None:
    coordinates = SpaceEncoder(SPACE)
    assert coordinates.encode(VALUES) == pytest.approx([1 / 3, 1 / 3, np.sqrt(0.5), 0.0, 0.5])
    random = np.random.default_rng(0)
    for draw in [*coordinates.sample(50, random), *coordinates.perturb(VALUES, 50, random)]:
        values = coordinates.decode(draw)
        assert 1e-5 <= values["learning_rate"] <= 1e-2
        assert values["lora_rank"] in {4, 8, 16, 32}
        assert values["target_modules"] in ("q_proj", "q_proj+v_proj")
        assert coordinates.encode_many(draw[None])[0][:2] == pytest.approx(coordinates.encode(values)[:2])


def test_a_configuration_nearby_keeps_some_of_the_values() -> None:
    coordinates = SpaceEncoder(SPACE)
    draws = coordinates.perturb(VALUES, 200, np.random.default_rng(1))
    same = np.mean(draws == coordinates.to_unit(VALUES), 0)
    assert np.all((same > 0.3) & (same < 0.9))


def test_the_fit_climbs_to_where_its_gradient_says() -> None:
    random = np.random.default_rng(0)
    trial = np.repeat(np.arange(10), 3)
    points = Points(random.random((10, 2))[trial], np.log(np.tile([1, 3, 9], 10) / 9), trial)
    theta = prior(2)[0]
    y = np.linalg.cholesky(covariance(theta, points, points) + 1e-4 * np.eye(30)) @ random.standard_normal(30)
    found = fit(points, y, np.zeros(30), theta, 50)
    again = fit(points, y, np.zeros(30), found + 0.05, 50)
    assert again == pytest.approx(found, abs=0.05)
    block = covariance(theta, *[Points(points.x[:3], points.s[:3], points.trial[:3])] * 2)
    assert within(theta, points.s[None, :3])[0] == pytest.approx(block)


def test_decisions_use_one_thread() -> None:
    code = """
import subprocess
import sys

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


@pytest.mark.parametrize("late", [False, True])
def test_trust_in_an_early_loss_is_learned_from_the_nights_own_curves(late: bool) -> None:
    curve_model, _ = told(12, late)
    middle = {**VALUES, "learning_rate": 3e-4, "epochs": 2}
    curve_model.observe("good", middle, [(1 / 9, 1.4)], 0.0)
    curve_model.observe("bad", middle, [(1 / 9, 1.6)], 0.0)
    good, bad = (curve_model.predict_trial(name, np.ones((1, 1)))[0][0, 0] for name in ("good", "bad"))
    gain = np.log(1.6) - np.log(1.4)
    assert good < bad if not late else bad - good < gain / curve_model._scale


def test_what_is_told_after_a_refresh_counts_as_if_it_had_been_told_before() -> None:
    curve_model, values = told(6)
    curve_model.observe("new", values["2"], [(1 / 9, 1.7), (1 / 3, 1.1)], 0.05)
    after = curve_model.predict_trial("new", np.array([[0.5, 1.0]]))
    center, scale = curve_model._center, curve_model._scale
    curve_model._told_since_fit = 0
    curve_model.fit()
    before = curve_model.predict_trial("new", np.array([[0.5, 1.0]]))
    nats = [curve_model._center + curve_model._scale * before[0], center + scale * after[0]]
    assert nats[0] == pytest.approx(nats[1], abs=0.05)


def test_a_noisy_loss_moves_a_forecast_less() -> None:
    curve_model, values = told(6)
    forecasts = []
    for noise in (0.0, 1.0):
        curve_model.observe(f"noise {noise}", values["3"], [(1 / 9, 0.5)], noise)
        forecasts.append(curve_model.predict_trial(f"noise {noise}", np.ones((1, 1)))[0][0, 0])
    assert forecasts[0] < forecasts[1]


def test_the_model_sees_no_more_than_it_can_take() -> None:
    curve_model, _ = told(400)
    assert curve_model._base is not None
    assert len(curve_model._base[1]) <= 1.1 * MOST_POINTS
    assert curve_model.predict_trial("399", np.ones((1, 1)))[1][0, 0, 0] < 0.1
