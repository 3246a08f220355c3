"""What a run folder takes on disk at most: adapters that are kept, checkpoints of paused trials, records, the study."""

from __future__ import annotations

from orchestrator.planning.memory_bounds import memory_bounds
from orchestrator.state.run_dir import Search

_WEIGHT_BYTES = 4
_MOMENT_BYTES = {True: 2, False: 8}
"""AdamW's two, in 8 bits or 32."""
_TRIAL_BYTES = 60_000
"""Configuration, metrics, TensorBoard events and Ray Tune's own files of one trial, besides its rows' losses."""
_ROW_BYTES = 30
_SEARCH_BYTES = 8_000_000
"""The study, the report with the library that draws its figures, the export's tokenizer."""


def disk_gib(search: Search, slots: int, trials: int | None) -> float | None:
    """GiB of the run folder, if all adapters were as large as the space's largest; None where that isn't known."""
    found = memory_bounds(search)
    if not found:
        return None
    largest = max(bound.parameters for bound in found)
    settings = search.recipe.search
    is_8bit = "8bit" in search.recipe.hyperparameters.optimizer
    adapter = largest * _WEIGHT_BYTES
    checkpoint = largest * (_WEIGHT_BYTES + _MOMENT_BYTES[is_8bit])
    # One more checkpoint a slot is being written while its predecessor is still there; the export is an adapter too.
    waiting = settings.keep_paused if trials is None else min(settings.keep_paused, trials)
    kept = (waiting + slots) * (adapter + checkpoint) + slots * checkpoint + (settings.keep_adapters + 1) * adapter
    rows = search.data.get("eval", {}).get("rows", 0)
    records = (trials or settings.trials or 0) * (_TRIAL_BYTES + rows * _ROW_BYTES)
    return float(kept + records + _SEARCH_BYTES) / 2**30
