"""What is logged of a trial for people: TensorBoard events, and a run in Weights & Biases where that is asked for."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trials.config import TrackingSettings, TrialConfig
from trials.files import write_text
from trials.records import EvalPoint, TrialFolder

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

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
def wandb_run(folder: Path, config: TrialConfig, group: str) -> Iterator[Log]:
    """A run named after the trial's folder while inside; transformers' own callback logs into it.

    A trial that goes on does so in the run that it began, whose id is in its folder; `tracking.run_id` goes before it.

    Gives a function that logs into it as well; it does nothing where W&B isn't wanted.
    """
    settings = config.tracking
    if not wandb_is_wanted(settings):
        yield lambda _: None
        return
    import wandb

    run_id, is_known = _run_id(folder, settings)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", settings.project),
        group=group,
        name=settings.run_name or f"{group}/{folder.name}",
        id=run_id,
        resume="allow" if is_known else None,
        dir=str(folder),
        config=config.model_dump(mode="json"),
        reinit="finish_previous",
    )
    try:
        yield lambda found: run.log(dict(found))
    finally:
        run.finish()


def _run_id(folder: Path, settings: TrackingSettings) -> tuple[str, bool]:
    """The W&B run's id, kept before the run begins, and whether it may have begun already."""
    path = folder / _RUN_ID_FILE
    kept = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    run_id = settings.run_id or kept or secrets.token_hex(4)
    if run_id != kept:
        write_text(path, run_id + "\n")
    return run_id, bool(settings.run_id or kept)


def keep_run_id(folder: Path, settings: TrackingSettings) -> None:
    """Decides on a trial's W&B run, and notes it in the folder, before anybody begins it on another machine."""
    if wandb_is_wanted(settings):
        _run_id(folder, settings)


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


def event_writer(folder: TrialFolder, steps_done: int) -> SummaryWriter:
    """Writes a trial's TensorBoard events.

    TensorBoard hides what an earlier process logged of steps that are trained again.
    """
    from tensorboardX import SummaryWriter

    events = folder.path / "tensorboard"
    purge_step = steps_done + 1 if events.exists() else None
    return SummaryWriter(str(events), purge_step=purge_step, write_to_disk=folder.is_written)
