"""The time kept before the deadline for the last evaluations, the export, its proof in a fresh process, and the report.

Measured: the base model's evaluation, which every search begins with, starts the same kind of process, loads the same
model and evaluates the same rows. What it doesn't tell is taken from what was measured elsewhere, with room to spare:
on the demo (two cores) it expects 38 s of work and keeps 54 s, where 30 s are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.state.run_dir import Search
from trials.errors import ModelError

_SAFETY = 1.3
"""The machine may have other work just then: with three times as many processes as cores, 30 s became 40."""
_SECOND_TRY_SHARE = 0.02
"""Of the budget, for doing it all once more where the process dies in the middle of it."""
_MOST_SHARE = 0.4
_LIKELY_SHARE = 0.6
_LATE_SHARE = 0.25

_ADAPTER_SECONDS = 3.0
"""Loading base and adapter by PEFT, beyond loading the base."""
_FILES_SECONDS = 4.0
"""Ending Ray, tokenizer, hashes, model card, report."""
_SLOWER_ON_GPU, _SLOWER_ON_CPU = 1.8, 1.2
"""Evaluation in the proof, by transformers and PEFT in padded batches, against the engine's."""
_STEP_SECONDS, _LAYER_SECONDS = 0.005, 0.0012
"""Of one token of an answer, and of each layer that it passes: launching kernels, reading all weights."""
_LAYERS = 32
"""Of a model whose config can't be read."""


@dataclass(frozen=True)
class ExportWork:
    """What the end of a search has to do, in rows and tokens."""

    eval_rows: int
    test_rows: int
    """0 without a test set."""
    row_tokens: float
    """Of a mean eval row."""
    samples: int
    """Questions that base and winner answer."""
    answer_tokens: int
    """The longest that an answer can get."""
    layers: int
    """Of the base model."""
    slots: int
    """Trials on one device that may be in the middle of their last evaluation."""
    score_rows: int = 0
    """Rows that each of them answers besides."""
    on_gpu: bool = False


def measured_reserve(base_seconds: float, eval_seconds: float, work: ExportWork, budget_seconds: float) -> float:
    """Seconds to keep, by what the base model's evaluation took; never more than 40 % of the budget.

    `base_seconds` run from handing it out to its end, with the model's load; `eval_seconds` are its evaluation alone.
    """
    load = max(0.0, base_seconds - eval_seconds) + _ADAPTER_SECONDS
    row = eval_seconds / max(1, work.eval_rows)
    # The test rows are evaluated twice, by winner and base; so are the samples answered.
    rows = work.eval_rows + 2 * work.test_rows
    slower = _SLOWER_ON_GPU if work.on_gpu else _SLOWER_ON_CPU
    proof = load + slower * row * rows + 2 * _answering(work, row, work.samples)
    last_evaluations = work.slots * (eval_seconds + _answering(work, row, work.score_rows))
    work_seconds = proof + last_evaluations + _FILES_SECONDS
    second_try = min(work_seconds, _SECOND_TRY_SHARE * budget_seconds)
    return min(_SAFETY * work_seconds + second_try, _MOST_SHARE * budget_seconds)


def export_work(search: Search, slots: int) -> ExportWork:
    """What the end of this search has to do, with so many trials at once; from the rows that search.json counts."""
    recipe, rows = search.recipe, search.data.get("eval", {})
    engines = search.placement.engines if search.placement is not None else 1
    return ExportWork(
        eval_rows=rows.get("rows", 0),
        test_rows=search.data.get("test", {}).get("rows", 0),
        row_tokens=rows["tokens"] / rows["rows"] if rows.get("rows") else 1.0,
        samples=recipe.search.samples,
        answer_tokens=_answer_tokens(rows),
        layers=_layers(search),
        slots=-(-slots // engines) if engines else 1,
        score_rows=recipe.evaluation.score_rows or 0,
        on_gpu=search.gpus_per_trial > 0,
    )


def expected_seconds(reserve_seconds: float) -> float:
    """What the end will take most likely, of what is kept for it."""
    return _LIKELY_SHARE * reserve_seconds


def grace_seconds(reserve_seconds: float) -> float:
    """How long after the end of training a trial may still be in its last step or evaluation before it's cut off."""
    return _LATE_SHARE * reserve_seconds


def _answering(work: ExportWork, row_seconds: float, rows: int) -> float:
    """Answers to so many questions in one batch, token by token."""
    if not rows:
        return 0.0
    step = _STEP_SECONDS + _LAYER_SECONDS * work.layers + rows * row_seconds / work.row_tokens
    return work.answer_tokens * step


def _answer_tokens(rows: Mapping[str, Any]) -> int:
    """An answer may be twice as long as the longest of the answers expected: of a few rows, about three means."""
    if not rows.get("rows"):
        return 0
    return int(min(2 * rows["longest"], 3 * rows["completion_tokens"] / rows["rows"]))


def _layers(search: Search) -> int:
    try:
        return search.shape.num_hidden_layers or _LAYERS
    except ModelError:
        return _LAYERS
