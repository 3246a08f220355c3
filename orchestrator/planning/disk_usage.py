"""Upper limit of a run folder's size: kept adapters, checkpoints of paused trials, trial records, the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.planning.memory_bounds import memory_bounds
from orchestrator.state.search import Search
from trials.config import Hyperparameters

_WEIGHT_BYTES = 4
_MOMENT_BYTES = {True: 2, False: 8}
"""Bytes per parameter of AdamW's two moments, by whether they have 8 bits; else they have 32."""
_TRIAL_BYTES = 60_000
"""Configuration, metrics, TensorBoard events and Ray Tune's files of one trial, without its row losses."""
_ROW_BYTES = 30
_SEARCH_BYTES = 8_000_000
"""The study, the report including its plotting library, and the export's tokenizer."""


def disk_gib(search: Search, slots: int, trials: int | None) -> float | None:
    """Return the GiB of a run folder whose adapters are all as large as the space's largest; None if unknown.

    `trials` is the expected number of trials; None: unknown.
    """
    found = memory_bounds(search)
    if not found:
        return None
    settings, usual = search.recipe.search, search.recipe.hyperparameters
    adapter = max(bound.parameters * _WEIGHT_BYTES for bound in found)
    checkpoint = max(bound.parameters * _checkpoint_bytes(bound.values, usual) for bound in found)
    # Each slot has a second checkpoint while it replaces its old one. The export counts as one more adapter.
    waiting = settings.keep_paused if trials is None else min(settings.keep_paused, trials)
    kept = (waiting + slots) * (adapter + checkpoint) + slots * checkpoint + (settings.keep_adapters + 1) * adapter
    rows = search.data.get("eval", {}).get("rows", 0)
    records = (trials or settings.trials or 0) * (_TRIAL_BYTES + rows * _ROW_BYTES)
    return float(kept + records + _SEARCH_BYTES) / 2**30


def _checkpoint_bytes(values: Mapping[str, Any], usual: Hyperparameters) -> int:
    """Return the bytes of a checkpoint per parameter: weights, their average if one is kept, and moments."""
    weights = 2 if values.get("adapter_average", usual.adapter_average) else 1
    return weights * _WEIGHT_BYTES + _MOMENT_BYTES["8bit" in values.get("optimizer", usual.optimizer)]
