"""Run of a trial in Weights & Biases, if wanted; it can't fail the trial, nor make it wait."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trials.config import TrackingSettings, TrialConfig
from trials.console.troubles import only_reporting
from trials.records.trial_dir import EvalPoint
from trials.system.files import write_text
from trials.tracking.tracker import ABOUT, TrackedRun, Tracker

FINISH_SECONDS = 20.0
"""Seconds for W&B at a trial's end to accept what is left, and as many again to write it to disk instead."""
_RUN_ID_FILE = "wandb_run"

Log = Callable[[Mapping[str, float]], None]


def wandb_is_wanted(settings: TrackingSettings) -> bool:
    """Return whether the recipe allows W&B, and there is a key for it or the wish to log offline."""
    if not settings.wandb:
        return False
    mode = os.environ.get("WANDB_MODE", "")
    return mode == "offline" or (bool(os.environ.get("WANDB_API_KEY")) and mode != "disabled")


def without_wandb(config: TrialConfig) -> TrialConfig:
    """Return the configuration without W&B, for a process that leaves the trial's run to another."""
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": False})})


@contextmanager
def wandb_run(
    folder: Path, config: TrialConfig, group: str, finish_seconds: Callable[[], float] = lambda: FINISH_SECONDS
) -> Iterator[Log]:
    """Keep a run named after the trial's folder; yield a function that logs into it and never waits.

    A resumed trial continues the run that it began, whose id is in its folder; `tracking.run_id` takes precedence. No
    failure of W&B is raised here: `trials.tracking.tracker` warns of it, and logs offline in the folder.
    """
    tracker = _tracker(folder, config, group)
    try:
        yield _unheard if tracker is None else tracker.log
    finally:
        if tracker is not None:
            tracker.close(finish_seconds())


def _tracker(folder: Path, config: TrialConfig, group: str) -> Tracker | None:
    settings = config.tracking
    if not wandb_is_wanted(settings):
        return None
    with only_reporting(ABOUT):
        run_id, is_known = _run_id(folder, settings)
        run = TrackedRun(
            dir=str(folder),
            project=os.environ.get("WANDB_PROJECT", settings.project),
            group=group,
            name=settings.run_name or f"{group}/{folder.name}",
            id=run_id,
            resume="allow" if is_known else None,
            config=config.model_dump(mode="json"),
        )
        return Tracker(run, online=os.environ.get("WANDB_MODE") != "offline")
    return None


def _unheard(_: Mapping[str, float]) -> None:
    """Ignore metrics, because W&B isn't wanted or can't be used."""


def _run_id(folder: Path, settings: TrackingSettings) -> tuple[str, bool]:
    """Return the W&B run's id, saved before the run begins, and whether the run may exist already."""
    kept = _kept_id(folder)
    run_id = settings.run_id or kept or secrets.token_hex(4)
    if run_id != kept:
        with only_reporting(ABOUT):
            write_text(folder / _RUN_ID_FILE, run_id + "\n")
    return run_id, bool(settings.run_id or kept)


def _kept_id(folder: Path) -> str:
    """Return the saved id; empty if there is none, or none that can be read."""
    try:
        found = (folder / _RUN_ID_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return found if re.fullmatch(r"[\w-]{1,64}", found) else ""


def keep_run_id(folder: Path, settings: TrackingSettings) -> str | None:
    """Choose a trial's W&B run and save its id in the folder, before another machine begins the run.

    Returns None if W&B isn't wanted.
    """
    return _run_id(folder, settings)[0] if wandb_is_wanted(settings) else None


def figures(point: EvalPoint) -> dict[str, float]:
    """Return an evaluation's values under the names that transformers gives them when it logs."""
    found = {
        "train/global_step": point.step,
        "eval/loss": point.eval_loss,
        "eval/score": point.score,
        "train/loss": point.train_loss,
        "train/num_input_tokens_seen": point.tokens_seen,
    }
    return {name: value for name, value in found.items() if value is not None}
