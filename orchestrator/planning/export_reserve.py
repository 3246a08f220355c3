"""Time reserved before the deadline for last evaluations, the export, its verification in a fresh process, the report.

The estimate is based on the base model's evaluation, with which every search begins. It starts the same kind of
process, loads the same model and evaluates the same rows. The other parts are constants measured elsewhere. The
estimate is generous by itself: on the demo (two cores) it was 38 s, and 19 to 30 s were used; with SmolLM2 on an H200
it was 33 s, and 26 s were used. If verification takes longer, the adapter is there by the deadline, and proved later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.state.search import Search
from trials.errors import ModelError

_SAFETY = 1.05
"""Margin on the estimate. With three times as many processes as cores, 30 s became 40 where 38 s were estimated."""
_SECOND_TRY_SHARE = 0.02
"""Share of the budget, at most, for a second attempt if the process dies during the first."""
_MOST_SHARE = 0.4
_LIKELY_SHARE = 0.6
_LATE_SHARE = 0.25

_ADAPTER_SECONDS = 3.0
"""Loading an adapter with PEFT, in addition to loading the base."""
_FILES_SECONDS = 4.0
"""Shutting down Ray; writing tokenizer, hashes, model card and report."""
_SLOWER_ON_GPU, _SLOWER_ON_CPU = 1.8, 1.2
"""Evaluation time in the verification (transformers and PEFT, padded batches) relative to the engine's."""
_STEP_SECONDS, _LAYER_SECONDS = 0.005, 0.0012
"""Fixed cost of one generated token, and the cost per layer: kernel launches, and reading all weights."""
_LAYERS = 32
"""Assumed for a model whose config can't be read."""


@dataclass(frozen=True)
class ExportWork:
    """Work after the end of training, in rows and tokens."""

    eval_rows: int
    test_rows: int
    """0 without a test set."""
    row_tokens: float
    """Mean tokens of an eval row."""
    samples: int
    """Questions that base model and winner each answer."""
    answer_tokens: int
    """Upper limit of an answer's tokens."""
    layers: int
    """Layers of the base model."""
    slots: int
    """Trials on one device that may still be in their last evaluation."""
    score_rows: int = 0
    """Rows that each of these trials also answers; 0 without scoring."""
    on_gpu: bool = False


def measured_reserve(base_seconds: float, eval_seconds: float, work: ExportWork, budget_seconds: float) -> float:
    """Return the seconds to reserve, from the duration of the base model's evaluation; at most 40 % of the budget.

    `base_seconds` is the time from dispatching the base model to its end, loading included. `eval_seconds` is its
    evaluation alone.
    """
    load = max(0.0, base_seconds - eval_seconds) + _ADAPTER_SECONDS
    row = eval_seconds / max(1, work.eval_rows)
    # Winner and base model both evaluate the test rows and answer the samples; the eval rows need the winner only.
    rows = work.eval_rows + 2 * work.test_rows
    slower = _SLOWER_ON_GPU if work.on_gpu else _SLOWER_ON_CPU
    proof = load + slower * row * rows + 2 * _answering(work, row, work.samples)
    last_evaluations = work.slots * (eval_seconds + _answering(work, row, work.score_rows))
    work_seconds = proof + last_evaluations + _FILES_SECONDS
    second_try = min(work_seconds, _SECOND_TRY_SHARE * budget_seconds)
    return min(_SAFETY * work_seconds + second_try, _MOST_SHARE * budget_seconds)


def export_work(search: Search, slots: int) -> ExportWork:
    """Return the work after training with `slots` concurrent trials, from the row counts in search.json."""
    recipe, rows = search.recipe, search.data.get("eval", {})
    workers = search.placement.engines if search.placement is not None else 1
    return ExportWork(
        eval_rows=rows.get("rows", 0),
        test_rows=search.data.get("test", {}).get("rows", 0),
        row_tokens=rows["tokens"] / rows["rows"] if rows.get("rows") else 1.0,
        samples=recipe.search.samples,
        answer_tokens=_answer_tokens(rows),
        layers=_layers(search),
        slots=-(-slots // workers),
        score_rows=recipe.evaluation.score_rows or 0,
        on_gpu=search.gpus_per_trial > 0,
    )


def expected_seconds(reserve_seconds: float) -> float:
    """Return the seconds that the end will most likely take, as a share of the reserve."""
    return _LIKELY_SHARE * reserve_seconds


def grace_seconds(reserve_seconds: float) -> float:
    """Return the seconds after the end of training for which a trial may finish its last step or evaluation."""
    return _LATE_SHARE * reserve_seconds


def _answering(work: ExportWork, row_seconds: float, rows: int) -> float:
    """Return the seconds for answering `rows` questions in one batch, token by token.

    `row_seconds` is the evaluation time of one row.
    """
    if not rows:
        return 0.0
    step = _STEP_SECONDS + _LAYER_SECONDS * work.layers + rows * row_seconds / work.row_tokens
    return work.answer_tokens * step


def _answer_tokens(rows: Mapping[str, Any]) -> int:
    """Return an upper limit of an answer's tokens: the smaller of two longest rows and three mean completions."""
    if not rows.get("rows"):
        return 0
    return int(min(2 * rows["longest"], 3 * rows["completion_tokens"] / rows["rows"]))


def _layers(search: Search) -> int:
    try:
        return search.shape.num_hidden_layers or _LAYERS
    except ModelError:
        return _LAYERS
