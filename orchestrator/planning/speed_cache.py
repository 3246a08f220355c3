"""Speed estimate before any trial has run: from an earlier search's measurement, else from the GPU's datasheet.

<cache>/speeds.json    tokens a second by base model, engine and device; beside the tokenised rows (trials.data.cache)
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.planning.gpu_specs import known_rates
from orchestrator.planning.placement import plan_placement, sizes_on_gpu, trl_reason
from orchestrator.planning.throughput import FIRST_START_SECONDS, ThroughputModel
from orchestrator.planning.trial_length import shortened_evaluation
from orchestrator.state.search import Placement, Search
from trials.config import ModelSettings
from trials.model.activation_policy import ActivationPolicy
from trials.model.memory_plan import MOST_TOKENS, MicroBatchPlan, seconds_per_token
from trials.schedule import evaluation_tokens
from trials.system.files import write_json
from trials.system.gpus import gpu_count, gpu_names
from trials.system.shared_cache import is_ours, places

MEASURED = "measured"
EARLIER = "as an earlier search on this machine measured"
ESTIMATED = "estimated from the model's size and the GPU's name; measured in the first minutes"

_OF_RATES_ENGINE, _OF_RATES_TRL = 0.6, 0.15
"""Reached shares of the speed computed from datasheet rates, measured on an H100 (docs/engine.md)."""
_OF_RANKS = 0.8
"""Efficiency of each GPU where several train one trial together, relative to one GPU alone."""
_LEAST_SECONDS_PER_TOKEN = 1 / 60_000
"""Lower bound, whatever the GPU: kernel launches limit small models (measured with the demo on an H100)."""
_EVALUATED_TOKEN = 0.5
"""Cost of an evaluated token relative to a trained one: it needs no gradient."""


@dataclass(frozen=True)
class SpeedEstimate:
    """Speed of one trial in its slot, evaluations included, and the source of the figure in words."""

    seconds_per_token: float
    start_seconds: float
    source: str


def measured_speed(throughput: ThroughputModel) -> SpeedEstimate | None:
    """Return the speed that this search has measured; None before the first measurement."""
    each = throughput.seconds_per_token()
    return None if each is None else SpeedEstimate(each, throughput.start_seconds, MEASURED)


def speed_before(search: Search) -> SpeedEstimate | None:
    """Return the speed known before any trial has run; None if it is neither cached nor computable."""
    return _remembered(search) or _estimated(search)


def measured_scaling(search: Search, ranks: int, tokens_per_second: float) -> float | None:
    """Return the speedup of a trial on `ranks` GPUs over one GPU, as an earlier search measured it.

    `tokens_per_second` is the speed of one GPU in this search. None: not measured on this machine.
    """
    found = _read().get(_key(replace(search, ranks=ranks)))
    try:
        return float(found["tokens_per_second"]) / tokens_per_second  # type: ignore[index]
    except (TypeError, KeyError, ValueError, ZeroDivisionError):
        return None


def assumed_scaling(ranks: int) -> float:
    """Return the speedup of a trial on `ranks` GPUs over one GPU that is assumed before it is measured."""
    return ranks * _OF_RANKS


def placement_of(search: Search) -> Placement:
    """Return the placement that Ray has determined; before that, the one that this machine alone would give."""
    return search.placement or plan_placement(search, gpus=gpu_count(), cores=[os.cpu_count() or 1])


def save_speed(search: Search, throughput: ThroughputModel) -> None:
    """Save the measured speed for the plan of a later search; a cache that can't be written is no error."""
    each, per_device = throughput.seconds_per_token(), _slots_per_device(search)
    if each is None or not per_device:
        return
    found = {
        "tokens_per_second": per_device / each,
        "start_seconds": throughput.start_seconds,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for file in _files():
        if os.path.lexists(file) and not is_ours(file):
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {**_speeds_in(file), _key(search): found})
        except OSError:
            continue
        return


def _remembered(search: Search) -> SpeedEstimate | None:
    found, per_device = _read().get(_key(search)), _slots_per_device(search)
    if not isinstance(found, dict) or not per_device:
        return None
    try:
        return SpeedEstimate(per_device / found["tokens_per_second"], float(found["start_seconds"]), EARLIER)
    except (TypeError, KeyError, ValueError, ZeroDivisionError):
        return None


def _estimated(search: Search) -> SpeedEstimate | None:
    names, per_device = gpu_names(), _slots_per_device(search)
    rates = known_rates(names[0]) if names and search.gpus_per_trial else None
    if rates is None or not per_device:
        return None
    sizes = sizes_on_gpu(search)
    if sizes is None:
        return None
    share = _OF_RATES_TRL if trl_reason(search) else _OF_RATES_ENGINE
    each = (
        seconds_per_token(sizes, rates, MicroBatchPlan(MOST_TOKENS, (ActivationPolicy.RECOMPUTE_MLP,) * sizes.layers))
        / share
    )
    each = max(each, _LEAST_SECONDS_PER_TOKEN)
    if search.ranks > 1:
        each /= assumed_scaling(search.ranks)
    return SpeedEstimate(per_device * each * _with_evaluations(search), FIRST_START_SECONDS, ESTIMATED)


def _with_evaluations(search: Search) -> float:
    """Return the cost of a trained token with its share of the evaluations, in trained tokens."""
    settings = shortened_evaluation(search.recipe.evaluation, search.shortened or 1.0)
    epoch = search.epoch
    count = settings.evaluations if epoch is None else len(evaluation_tokens(search.full_tokens, settings, epoch))
    evaluated = search.data.get("eval", {}).get("tokens", 0) * count
    return 1 + float(_EVALUATED_TOKEN * evaluated / search.full_tokens)


def _slots_per_device(search: Search) -> float:
    """Return concurrent trials per device: a GPU, a worker's cores, or a worker group. 0 if no trial can run."""
    placed = placement_of(search)
    if not placed.slots:
        return 0.0
    return placed.slots / placed.engines


def _key(search: Search) -> str:
    model, machine = search.recipe.model, search.recipe.machine
    names = gpu_names() if search.gpus_per_trial else []
    device = names[0] if names else f"CPU of {os.cpu_count()} cores, threads {machine.cpu_threads}"
    engine = "trl" if trl_reason(search) else "shared"
    together = [f"{search.ranks} together"] if search.ranks > 1 else []
    return " | ".join([model.name, _revision(model), model.quantization, engine, device, *together])


def _revision(model: ModelSettings) -> str:
    """Return the hub revision; for a folder, whose content may be replaced, a digest of its config.json instead."""
    try:
        return hashlib.blake2b((Path(model.name) / "config.json").read_bytes(), digest_size=8).hexdigest()
    except OSError:
        return str(model.revision)


def _files() -> tuple[Path, ...]:
    """Return the files that may hold speeds, in the order to try for writing. Files of other users are only read."""
    from trials.data.cache import cache_folder

    return places(cache_folder(), "speeds.json", "rows")


def _read() -> dict[str, Any]:
    """Return the entries of all files by key; this user's own files take precedence over those of others."""
    files = sorted(_files(), key=is_ours)
    return {key: speed for file in files for key, speed in _speeds_in(file).items()}


def _speeds_in(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
