"""A trial's run in Weights & Biases, where that is asked for; it can't fail the trial, nor make it wait."""

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
"""At a trial's end for W&B to take what there is, and as many again to put it on disk instead."""
_RUN_ID_FILE = "wandb_run"

Log = Callable[[Mapping[str, float]], None]


def wandb_is_wanted(settings: TrackingSettings) -> bool:
    """Whether the recipe allows it, and there's a key to log with or the wish to log offline."""
    if not settings.wandb:
        return False
    mode = os.environ.get("WANDB_MODE", "")
    return mode == "offline" or (bool(os.environ.get("WANDB_API_KEY")) and mode != "disabled")


def without_wandb(config: TrialConfig) -> TrialConfig:
    """The trial in a process that leaves its W&B run to another."""
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": False})})


@contextmanager
def wandb_run(
    folder: Path, config: TrialConfig, group: str, finish_seconds: Callable[[], float] = lambda: FINISH_SECONDS
) -> Iterator[Log]:
    """A run named after the trial's folder while inside; gives a function that logs into it, and never waits for it.

    A trial that goes on does so in the run that it began, whose id is in its folder; `tracking.run_id` goes before it.
    Nothing that W&B does or doesn't do is raised here: `trials.tracking.tracker` warns of it, and logs offline in the
    folder.
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
    """W&B isn't wanted, or can't be had."""


def _run_id(folder: Path, settings: TrackingSettings) -> tuple[str, bool]:
    """The W&B run's id, kept before the run begins, and whether it may have begun already."""
    kept = _kept_id(folder)
    run_id = settings.run_id or kept or secrets.token_hex(4)
    if run_id != kept:
        with only_reporting(ABOUT):
            write_text(folder / _RUN_ID_FILE, run_id + "\n")
    return run_id, bool(settings.run_id or kept)


def _kept_id(folder: Path) -> str:
    """Empty where there is none, or none that can be read."""
    try:
        found = (folder / _RUN_ID_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return found if re.fullmatch(r"[\w-]{1,64}", found) else ""


def keep_run_id(folder: Path, settings: TrackingSettings) -> str | None:
    """Decides on a trial's W&B run, and notes it in the folder, before anybody begins it on another machine.

    None where W&B isn't wanted.
    """
    return _run_id(folder, settings)[0] if wandb_is_wanted(settings) else None


def figures(point: EvalPoint) -> dict[str, float]:
    """An evaluation under the names that transformers logs a trial's figures by, where it does the logging."""
    found = {
        "train/global_step": point.step,
        "eval/loss": point.eval_loss,
        "eval/score": point.score,
        "train/loss": point.train_loss,
        "train/num_input_tokens_seen": point.tokens_seen,
    }
    return {name: value for name, value in found.items() if value is not None}
