"""Run folders for the report's tests, written by the same code that a search writes them with."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna

from orchestrator.controller.new_trials import NewTrial, NewTrials
from orchestrator.controller.study import StudyRecorder
from orchestrator.planning.speed_cache import MEASURED
from orchestrator.sampling.distributions import decode_all, distributions, encode_all
from orchestrator.state.deadline import Deadline
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from orchestrator.state.search import Placement, Search, SearchForecast
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from trials.config import TrialConfig
from trials.data.split import Counts
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import Measure, RowScores
from trials.records.score_log import ScoreRecord, append_score
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir
from trials.state import TrialState

ROWS = 60
BASE_LOSS = 1.90
STEP_TOKENS = 11_112
STARTED = datetime.now(UTC) - timedelta(hours=7, minutes=12)


FINISHED = Ending(TrialState.FINISHED, "trained for all its 120 steps")


@dataclass(frozen=True)
class Told:
    """One trial as a test wants it."""

    id: str
    losses: Sequence[float]
    ending: Ending | None = FINISHED
    origin: Origin = Origin.PROPOSED
    name: str = "proposed"
    values: dict[str, Any] | None = None
    adapter: bool = True
    scores: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """Scores of rows by the number of the evaluation, from 1."""
    measure: Measure = Measure.LABEL
    ranks: int = 1
    """Processes that trained it together."""
    step_seconds: float = 21.5
    """From one evaluation to the next."""


BASE = Told(BASE_TRIAL_ID, [BASE_LOSS], origin=Origin.BASE, name="base", adapter=False)


def row_losses(mean: float, seed: int = 0, noise: float = 0.05) -> RowLosses:
    """Rows of which some are hard for every model; their token-weighted mean is exactly `mean`."""
    shared, own = random.Random(7), random.Random(seed)
    counts = [shared.randint(20, 60) for _ in range(ROWS)]
    sums = [n * (mean + shared.gauss(0, 0.4) + own.gauss(0, noise)) for n in counts]
    excess = math.fsum(sums) / sum(counts) - mean
    return RowLosses([s - n * excess for s, n in zip(sums, counts, strict=True)], counts)


def right(rows: int, of: int = 40) -> tuple[float, ...]:
    """So many rows with the right label, the first ones; the others wrong."""
    return (1.0,) * rows + (0.0,) * (of - rows)


def new_run(path: Path, requests: Sequence[str] = ()) -> RunDir:
    """A run folder that holds only its search.json; the recipe is the demo's."""
    resolved = load_recipe("demo", requests, environ={})
    (path / "trials").mkdir(parents=True)
    run = RunDir(path)
    run.write_search(
        Search(resolved.recipe, resolved.sources, Deadline(STARTED, STARTED + timedelta(hours=9), 300), 0, 100_000)
    )
    return run


def write_trial(run: RunDir, told: Told, config: TrialConfig | None = None) -> TrialDir:
    """Writes a trial as the code that trains does."""
    recipe = run.read_search().recipe
    folder = TrialDir(run.trial(told.id))
    folder.begin(config or recipe.trial_config(told.values or {}), told.origin, told.name)
    best = math.inf
    for number, loss in enumerate(told.losses, start=1):
        best = min(best, loss)
        step = 0 if told.origin is Origin.BASE else number
        point = EvalPoint(
            step=step * 14,
            tokens_seen=step * STEP_TOKENS,
            eval_loss=loss,
            best_eval_loss=best,
            seconds=max(step, 0.2) * told.step_seconds,
            tokens_per_second=None if step == 0 else 612.0,
            ranks=told.ranks,
        )
        losses = row_losses(loss, seed=int(told.id))
        if number in told.scores:
            scoring = ScoreRecord(
                point.step, point.tokens_seen, losses, RowScores(told.measure, (*told.scores[number],))
            )
            append_score(folder.path, scoring)
            point = replace(point, score=scoring.scores.mean, score_seconds=3.0)
        folder.record(point, losses, _save_adapter if told.adapter else None)
    if told.ending is not None:
        folder.end(told.ending)
    return folder


def night(path: Path) -> RunDir:
    """A whole search in small: some twenty trials that ended in every way there is, with study, export and samples."""
    run = new_run(path, ["weight_decay=0.02"])
    write_trial(run, BASE)
    recipe = run.read_search().recipe
    new_trials, rng = NewTrials(recipe, []), random.Random(3)
    for _ in range(22):
        new = new_trials.next(Drawn(recipe))
        assert new is not None
        write_trial(run, _imagined(new, rng), recipe.trial_config(new.values))
    StudyRecorder(run, recipe, run.records(), [].append)
    winner = min((r for r in run.records() if r.origin is not Origin.BASE and r.points), key=lambda r: r.best_eval_loss)
    write_export(run, winner.id, winner.best_eval_loss or 0.0)
    write_samples(run)
    return run


class Drawn:
    """Draws every configuration from a recipe's space at random."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def begin(self, number: int, values: Mapping[str, Any]) -> None:
        """A starting point needs no drawing."""

    def propose(self, number: int) -> Mapping[str, Any]:
        return encode_all(drawn(self._recipe, self._recipe.search.seed + number - 1), self._recipe.space)


def drawn(recipe: Recipe, seed: int) -> dict[str, Any]:
    """A configuration drawn from a recipe's space at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return decode_all(study.ask(distributions(recipe.space)).params, recipe.space)


def write_export(run: RunDir, winner: str, loss: float, **changes: Any) -> None:
    """export/manifest.json as the export writes it, as far as the report reads it."""
    run.export.mkdir(exist_ok=True)
    manifest = {
        "trial": winner,
        "eval_loss": loss,
        "base_eval_loss": BASE_LOSS,
        "verified": {"eval_loss": loss + 2e-5, "difference": 2e-5, "tolerance": 1e-3},
        "test": {
            "eval_loss": 1.1234,
            "base_eval_loss": 1.9345,
            "difference": 0.8111,
            "standard_error": 0.0123,
            "rows": 40,
        },
        **changes,
    }
    (run.export / "manifest.json").write_text(json.dumps(manifest))


def write_prediction(run: RunDir, **changes: Any) -> None:
    """What search.json says once the speed is measured: a length, where trials run, and what the search will bring."""
    search = run.read_search()
    prediction = SearchForecast(
        trials=25,
        full_trials=5,
        full_tokens=search.full_tokens,
        tokens=1_000_000,
        seconds_per_token=0.002,
        source=MEASURED,
        made=STARTED + timedelta(minutes=3),
        slots=2,
        reserve_seconds=300,
        ends=STARTED + timedelta(hours=8, minutes=58),
        disk_gib=0.5,
        energy_kwh=8.1,
        cost=None,
    )
    placed = replace(search, placement=Placement(2, 2), gpus_per_trial=1)
    counts = {**dict.fromkeys((each.name for each in fields(Counts)), 0), "rows": 500, "tokens": 50_000}
    run.write_search(replace(placed, shortened=0.25, data={"train": counts}, prediction=replace(prediction, **changes)))


def write_samples(run: RunDir, **changes: str) -> None:
    """samples.json with two samples; `changes` to the first."""
    first = {
        "id": "test-1",
        "prompt": "Premise: All the lamps in the hall are lit.\nHypothesis: No lamp in the hall is dark.\nReasoning:",
        "expected": "Lit is the opposite of dark, and it holds for all lamps.\nLabel: entailment",
        "base": "The lamps lamps in the in the hall. Premise: All",
        "winner": "All lamps are lit, so none is dark.\nLabel: entailment",
        **changes,
    }
    second = {**first, "id": "test-2", "prompt": "Premise: Two of five doors are open.\nHypothesis: A door is open."}
    (run.path / "samples.json").write_text(json.dumps([first, second]))


def _save_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _imagined(new: NewTrial, rng: random.Random) -> Told:
    """A curve that depends on the learning rate most, and how it ended."""
    rate = new.values["learning_rate"]
    off = abs(math.log10(rate) - math.log10(1.5e-3))
    floor = 1.02 + 0.22 * off + 0.0004 * abs(new.values["lora_rank"] - 16) + rng.gauss(0, 0.01)
    curve = [floor + (BASE_LOSS - floor) * math.exp(-1.1 * k / (1 + off)) + rng.gauss(0, 0.006) for k in range(1, 10)]
    losses, ending = _ended(new, off, curve)
    origin = Origin.START if new.name else Origin.PROPOSED
    return Told(new.trial_id, losses, ending, origin, new.name or "proposed")


def _ended(new: NewTrial, off: float, curve: list[float]) -> tuple[list[float], Ending | None]:
    """What's left of the curve, and how the trial ended."""
    special: dict[int, tuple[list[float], Ending | None]] = {
        7: (
            [curve[0], 2.4, 4.4],
            Ending(TrialState.DIVERGED, "eval loss 4.4000 is above 2 times the base model's 1.9000"),
        ),
        9: ([], Ending(TrialState.OUT_OF_MEMORY, "CUDA out of memory: 2.1 GiB")),
        11: ([], Ending(TrialState.FAILED, "its process died")),
        14: (
            [*curve[:4], *(curve[3] + 0.02 * k for k in range(1, 4))],
            Ending(TrialState.EARLY_STOPPED, f"3 evaluations without improving on {curve[3]:.4f}"),
        ),
        21: (curve[:4], None),
    }
    number = int(new.trial_id) - 1
    if number in special:
        return special[number]
    if new.name is None and off > 0.55:
        rung = 1 if off > 0.9 else 3
        reason = f"stopped at the rung at {rung * STEP_TOKENS:,} tokens: loss {curve[rung]:.4f}, place 7 of 12"
        return curve[:rung], Ending(TrialState.PRUNED, reason)
    return curve, FINISHED
