"""The proof of equality: random configurations, side by side in one engine, against TRL one by one.

On a CPU in float32. What differs is the order of sums: losses to a few parts in a million.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from search_spaces.schema import Recipe
from tests.support.trained_trials import TRL, Workshop
from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.engine.engine import Engine
from trials.engine.model.decoder import Decoder
from trials.engine.model.packed_batch import PackedBatch
from trials.records.trial_dir import TrialRecord
from trials.state import TrialState
from trials.training.training_run import TrialBackend

pytestmark = pytest.mark.slow

DRAWN, AT_ONCE, STEPS, ROWS = 12, 8, 4, 24
TOLERANCE = 1e-4
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPTIMIZERS = ("adamw_torch", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
BATCHES = (1, 2, 3, 4, 6, 16)
DIVERGING = {"lora_alpha": 1e30, "effective_batch": 2, "rows_seen": 2 * STEPS, "adapter_average": 0.2}


def draw(number: int) -> dict[str, Any]:
    """A configuration from all over the space; batches, optimizers and clipping come in turn, everything else by lot.

    The rate of B is 3e-5 to 3e-3, the adapter's scale half to twice that of alpha = rank. Beyond that trials blow up,
    and rounding is amplified until TRL itself, given other micro-batches, differs from TRL by parts in a thousand.
    """
    lot = random.Random(f"equality {number}")
    ratio = lot.choice((1.0, 1.0, 4.0))
    batch, rank, use_rslora = BATCHES[number // 2], lot.randint(1, 64), lot.random() < 0.4
    return {
        "learning_rate": 10 ** lot.uniform(-4.5, -2.5) / ratio,
        "scheduler": _scheduler(number, lot.choice(("cosine", "linear", "constant", "constant_with_warmup"))),
        "warmup_fraction": lot.choice((0.0, 0.3)),
        "lora_rank": rank,
        "lora_alpha": lot.uniform(0.5, 2) * (rank**0.5 if use_rslora else rank),
        "use_rslora": use_rslora,
        "lora_dropout": lot.choice((0.0, 0.05, 0.3)),
        "target_modules": lot.sample(MODULES, lot.randint(1, len(MODULES))),
        "effective_batch": batch,
        "rows_seen": STEPS * batch,
        # Norms are 1 to 30: at 8 some steps are clipped. AdamW doesn't care by how much where all are.
        "max_grad_norm": (None, 0.1, 8.0)[number % 3],
        "weight_decay": lot.choice((0.0, 0.1)),
        "optimizer": OPTIMIZERS[number % len(OPTIMIZERS)],
        "loraplus_ratio": ratio,
        "adapter_average": (0.0, 0.2, 0.6)[number // 2 % 3],
    }


def _scheduler(number: int, drawn: str) -> str:
    """The one without an end comes in turn, too."""
    return "inverse_sqrt" if number % 4 == 3 else drawn


@dataclass
class Runs:
    """Every configuration under TRL and in the engine, and how many trials shared a micro-step."""

    by_trl: list[TrialRecord] = field(default_factory=list)
    in_engine: list[TrialRecord] = field(default_factory=list)
    diverging: TrialRecord | None = None
    company: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def runs(
    small_recipe: Recipe,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    workshop = Workshop(small_recipe, small_data, tokenizer, tmp_path_factory.mktemp("equality"))
    configs = [_config(workshop, draw(number), seed=number) for number in range(DRAWN)]
    diverging = _config(workshop, DIVERGING, seed=99)
    found = Runs()
    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, found.company)
        # The diverging one among the first, and some once more at the end, so that the last have company too.
        queue = [*configs[:5], diverging, *configs[5:], *configs[:4]]
        found.in_engine = _side_by_side(workshop, queue)
    found.diverging = found.in_engine.pop(5)
    found.by_trl = [_run(workshop, f"trl {number}", config, TRL) for number, config in enumerate(configs)]
    return found


def _config(workshop: Workshop, hyperparameters: dict[str, Any], seed: int) -> TrialConfig:
    rows = hyperparameters["rows_seen"]
    config = workshop.config({"checkpoint_every_rows": rows, "micro_batch_tokens": 4096}, **hyperparameters)
    evaluation = config.evaluation.model_copy(update={"evaluations": 2, "divergence_factor": 99.0})
    return config.model_copy(update={"evaluation": evaluation, "seed": seed, "base_eval_loss": 3.0})


def _watch(patch: pytest.MonkeyPatch, company: list[int]) -> None:
    train = Decoder.train

    def watched(self: Decoder, batch: PackedBatch) -> torch.Tensor:
        company.append(len(batch.segments))
        return train(self, batch)

    patch.setattr(Decoder, "train", watched)


def _side_by_side(workshop: Workshop, configs: Sequence[TrialConfig]) -> list[TrialRecord]:
    engine = Engine(configs[0].model, configs[0].machine)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            numbered = enumerate(configs)
            running = [pool.submit(_run, workshop, f"engine {n}", config, engine) for n, config in numbered]
            return [one.result() for one in running]
    finally:
        engine.close()


def _run(workshop: Workshop, name: str, config: TrialConfig, by: TrialBackend) -> TrialRecord:
    return workshop.run(name, config, ROWS, by=by)


def _curve(record: TrialRecord) -> dict[str, list[float]]:
    """All that was measured on the way: the eval rows' losses, each step's train loss, gradient norm and rate."""
    state = record.folder / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json"
    steps = [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    curve = {name: [entry[name] for entry in steps] for name in ("loss", "grad_norm", "learning_rate")}
    return {
        **curve,
        "tokens": [float(entry["num_input_tokens_seen"]) for entry in steps],
        "eval_loss": [point.eval_loss for point in record.points],
        "evaluated": [float(point.tokens_seen) for point in record.points],
    }


def _assert_near(found: TrialRecord, expected: TrialRecord) -> None:
    """Relative, in every single figure. A gradient's norm moves by more than the loss that it is of."""
    distance = _distance(found, expected)
    exact = {"grad_norm": 1e-3, "loss": TOLERANCE, "eval_loss": TOLERANCE}
    assert all(value <= exact.get(name, 0.0) for name, value in distance.items()), distance


def _distance(found: TrialRecord, expected: TrialRecord) -> dict[str, float]:
    """The largest relative difference of each figure."""
    curve, reference = _curve(found), _curve(expected)
    assert {name: len(values) for name, values in curve.items()} == {
        name: len(values) for name, values in reference.items()
    }
    return {
        name: max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(values, reference[name], strict=True))
        for name, values in curve.items()
    }


@pytest.mark.parametrize("number", range(DRAWN))
def test_a_curve_in_the_engine_is_that_under_trl(runs: Runs, number: int) -> None:
    # Measured: losses 1.1e-6 at most, and no more with 8-bit state, whose roundings could fall the other way.
    _assert_near(runs.in_engine[number], runs.by_trl[number])
    assert runs.in_engine[number].ending == runs.by_trl[number].ending
    losses = _curve(runs.in_engine[number])["loss"]
    assert losses[-1] != pytest.approx(losses[0], rel=TOLERANCE)


def test_the_same_configuration_in_other_company_gives_the_same_curve(runs: Runs) -> None:
    for first, again in zip(runs.in_engine, runs.in_engine[DRAWN:], strict=False):
        _assert_near(again, first)


def test_trials_really_shared_their_micro_steps(runs: Runs) -> None:
    assert max(runs.company) > AT_ONCE / 2


def test_who_diverges_ends_alone(runs: Runs) -> None:
    assert runs.diverging is not None
    assert runs.diverging.ending is not None
    assert runs.diverging.ending.kind is TrialState.DIVERGED
    assert {record.ending.kind for record in runs.in_engine if record.ending} == {TrialState.FINISHED}


def test_the_draw_reaches_all_of_the_space() -> None:
    drawn = [draw(number) for number in range(DRAWN)]
    assert {module for values in drawn for module in values["target_modules"]} == set(MODULES)
    for name in (
        "optimizer",
        "scheduler",
        "max_grad_norm",
        "weight_decay",
        "lora_dropout",
        "use_rslora",
        "adapter_average",
    ):
        assert len({values[name] for values in drawn}) > 1, name
    assert min(values["effective_batch"] for values in drawn) == 1
    assert max(values["effective_batch"] for values in drawn) == 16
    assert {values["optimizer"] for values in drawn} == set(OPTIMIZERS)
