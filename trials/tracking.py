"""What is logged of a trial for people: TensorBoard events, and a run in Weights & Biases where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trials.config import TrackingSettings, TrialConfig
from trials.records import EvalPoint

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

Log = Callable[[Mapping[str, float]], None]


def wandb_is_wanted(settings: TrackingSettings) -> bool:
    """Whether the recipe allows it, and there's a key to log with or the wish to log offline."""
    if not settings.wandb:
        return False
    mode = os.environ.get("WANDB_MODE", "")
    return mode == "offline" or (bool(os.environ.get("WANDB_API_KEY")) and mode != "disabled")


@contextmanager
def wandb_run(folder: Path, config: TrialConfig, group: str) -> Iterator[Log]:
    """A run named after the trial's folder while inside; transformers' own callback logs into it.

    Gives a function that logs into it as well; it does nothing where W&B isn't wanted.
    """
    settings = config.tracking
    if not wandb_is_wanted(settings):
        yield lambda _: None
        return
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", settings.project),
        group=group,
        name=settings.run_name or f"{group}/{folder.name}",
        id=settings.run_id,
        resume="allow" if settings.run_id else None,
        dir=str(folder),
        config=config.model_dump(mode="json"),
        reinit="finish_previous",
    )
    try:
        yield lambda found: run.log(dict(found))
    finally:
        run.finish()


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


def event_writer(folder: Path, steps_done: int) -> SummaryWriter:
    """Writes a trial's TensorBoard events.

    TensorBoard hides what an earlier process logged of steps that are trained again.
    """
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1 if steps_done else None)
