"""Under TRL, two processes train what one does: the same rows in every step, the same losses, one kind of files.

The processes are real (torchrun, gloo). Each scenario of tests/support/two_processes.py leaves its trial in a folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.cli import run_command
from tests.support.trained_trials import Workshop, step_losses
from tests.support.two_processes import AVERAGED, EIGHT_BIT, NOISE, PAUSING, ROWS, UNEVEN, few_to_evaluate
from trials.data.dataset import TrialData
from trials.engine.engine import Engine
from trials.records.memory_report import read_memory_report
from trials.records.trial_dir import Origin, TrialRecord, read_trial
from trials.training.training_run import Decision

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
"""Measured: 6e-7."""
WITHIN_TRL = 1e-6


@pytest.fixture(scope="module")
def shop(
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Workshop:
    return Workshop(small_recipe, few_to_evaluate(small_data), tokenizer, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def engine(shop: Workshop) -> Iterator[Engine]:
    engine = Engine(shop.config().model, shop.config().machine)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def cut_off(shop: Workshop) -> list[tuple[int, bool]]:
    """Two processes that end in the middle of a step for lack of memory: what was tried, by their memory report."""
    assert torchrun(shop.path, "short_later").returncode != 0
    record = read_trial(shop.path / "short later")
    assert record.ending is None
    assert len(record.points) == 1
    return tried(record.folder)


@pytest.fixture(scope="module")
def done(shop: Workshop, engine: Engine, cut_off: list[tuple[int, bool]]) -> Path:
    """Where all scenarios that come to an end have left their trials, and one process its own."""
    for name, by in (("from one", None), ("from the engine", engine)):
        ways: dict[str, Any] = {} if by is None else {"by": by}
        shop.run(name, shop.config(PAUSING), ROWS, lambda _: Decision.STOP, origin=Origin.PROPOSED, **ways)
    scenarios = ("straight", "uneven", "noise", "averaged", "paused", "resumed", "shared", "short", "short_later")
    found = torchrun(shop.path, *scenarios)
    assert found.returncode == 0, found.stderr[-4000:]
    return shop.path


@pytest.fixture(scope="module")
def alone(shop: Workshop) -> TrialRecord:
    """What one process makes of the same trial."""
    return shop.run("alone", shop.config(), ROWS)


def torchrun(path: Path, *scenarios: str) -> CompletedProcess[str]:
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run_command([sys.executable, *launched, "-m", "tests.support.two_processes", str(path), *scenarios], 900)


def assert_near(found: TrialRecord, expected: TrialRecord, tolerance: float = TOLERANCE) -> None:
    for name in ("step", "tokens_seen", "eval_loss", "best_eval_loss", "train_loss"):
        ours, theirs = ([getattr(point, name) for point in record.points] for record in (found, expected))
        assert ours == pytest.approx(theirs, abs=tolerance, rel=0), name
    assert found.ending == expected.ending


def test_the_losses_are_those_of_one_process(done: Path, alone: TrialRecord) -> None:
    two = read_trial(done / "straight")
    assert_near(two, alone)
    assert step_losses(two) == pytest.approx(step_losses(alone), abs=TOLERANCE, rel=0)
    ours, theirs = (record.row_losses() for record in (two, alone))
    assert ours is not None
    assert theirs is not None
    assert ours.token_counts == theirs.token_counts
    assert ours.loss_sums == pytest.approx(theirs.loss_sums, abs=1e-3)


def test_they_are_the_engine_s(done: Path, shop: Workshop, engine: Engine) -> None:
    assert_near(read_trial(done / "straight"), shop.run("in the engine", shop.config(), ROWS, by=engine))


def test_a_batch_need_not_be_a_multiple_of_the_processes(done: Path, shop: Workshop) -> None:
    assert_near(read_trial(done / "uneven"), shop.run("uneven alone", shop.config(**UNEVEN), ROWS))


def test_a_shared_base_changes_nothing(done: Path, alone: TrialRecord, shop: Workshop) -> None:
    assert_near(read_trial(done / "shared"), alone)
    assert_near(read_trial(done / "shared in stretches"), alone)
    assert_near(read_trial(done / "shared, recomputed"), shop.run("8 bits alone", shop.config(**EIGHT_BIT), ROWS))


def test_a_process_keeps_its_part_of_a_shared_base(done: Path) -> None:
    found = json.loads((done / "bytes.json").read_text())
    assert found["whole"] == 0
    assert found["of"] > 100_000
    assert found["parts"] == pytest.approx(found["of"] / 2, rel=0.01)


def test_noise_goes_on_where_it_stopped_in_either_process(done: Path, alone: TrialRecord) -> None:
    straight, paused = (read_trial(done / name) for name in ("noise", "noise in stretches"))
    assert_near(paused, straight, WITHIN_TRL)
    assert abs(straight.points[0].eval_loss - alone.points[0].eval_loss) > 10 * TOLERANCE
    assert straight.config.hyperparameters.neftune_noise_alpha == NOISE["neftune_noise_alpha"]


def test_the_adapter_s_average_is_that_of_one_process(done: Path, shop: Workshop) -> None:
    assert_near(read_trial(done / "averaged in stretches"), shop.run("averaged alone", shop.config(**AVERAGED), ROWS))


@pytest.mark.parametrize("name", ["from one", "from the engine"])
def test_two_go_on_from_a_checkpoint_of_one(done: Path, alone: TrialRecord, name: str) -> None:
    assert_near(read_trial(done / name), alone)


@pytest.mark.parametrize("name", ["for one", "for the engine"])
def test_one_goes_on_from_a_checkpoint_of_two(
    done: Path, shop: Workshop, engine: Engine, alone: TrialRecord, name: str
) -> None:
    ways: dict[str, Any] = {"by": engine} if name == "for the engine" else {}
    assert_near(shop.resume(read_trial(done / name), ROWS, **ways), alone)


def test_where_memory_does_not_suffice_on_one_both_take_less(done: Path, alone: TrialRecord) -> None:
    assert_near(read_trial(done / "short"), alone)
    assert tried(done / "short") == [(2, False), (1, True)]


def test_where_it_does_not_suffice_in_the_middle_of_a_step_they_end_and_go_on_with_less(
    done: Path, alone: TrialRecord, cut_off: list[tuple[int, bool]]
) -> None:
    assert cut_off == [(2, True), (2, False)]
    assert_near(read_trial(done / "short later"), alone)
    assert tried(done / "short later") == [*cut_off, (1, True)]


def tried(folder: Path) -> list[tuple[int, bool]]:
    use = read_memory_report(folder)
    assert use is not None
    return [(attempt.rows, attempt.fits) for attempt in use.tried]
