"""Trials with checkpoints but without training: real folders, a real writer, made-up weights and losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trials.config import TrialConfig
from trials.metrics.row_losses import RowLosses
from trials.metrics.task_scores import Measure, RowScores
from trials.records.checkpoints import CheckpointWriter, LogState
from trials.records.score_log import ScoreRecord, append_score
from trials.records.trial_dir import Ending, EvalPoint, Origin, TrialDir, TrialRecord, read_trial
from trials.system.timer import TrialTimer

LOG = LogState(step=1, loss_sum=2.5)
FINGERPRINT = "rows"


def writer(folder: Path, *, keep: int | None = None, timer: TrialTimer | None = None) -> CheckpointWriter:
    return CheckpointWriter(TrialDir(folder), timer or TrialTimer(), base_eval_loss=3.0, keep=keep)


def write_checkpoint(folder: Path, step: int, *, keep: int | None = None) -> Path:
    """A checkpoint with two files where transformers would write seven."""
    to = writer(folder, keep=keep)
    to.write(step, LOG, lambda: save(to, step))
    return folder / "checkpoints" / f"checkpoint-{step}"


def save(to: CheckpointWriter, step: int) -> None:
    made = to.unfinished / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_text(f"weights of step {step}")
    (made / "optimizer.pt").write_text("state")


def evaluate(folder: TrialDir, step: int, loss: float, best: float, *, scored: bool = False) -> None:
    losses = RowLosses([loss, loss], [1, 1])
    point = EvalPoint(step, step * 100, loss, best, seconds=float(step))
    folder.keep_if_best(point, losses, lambda path: save_adapter(path, step))
    if scored:
        append_score(folder.path, ScoreRecord(step, step * 100, losses, RowScores(Measure.LABEL, (1.0, 0.0))))
    folder.log(point)


def save_adapter(path: Path, step: int) -> None:
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_text(f"weights of step {step}")


def trained(
    path: Path,
    config: TrialConfig,
    losses: Sequence[float],
    *,
    checkpoints: Sequence[int],
    ending: Ending | None = None,
    origin: Origin = Origin.SINGLE,
) -> TrialRecord:
    """A trial with one evaluation a step, scored, and a checkpoint after some of them."""
    folder = TrialDir(path)
    folder.begin(config, origin, "made up", FINGERPRINT)
    for step in range(1, max(len(losses), *checkpoints) + 1):
        if step <= len(losses):
            evaluate(folder, step, losses[step - 1], min(losses[:step]), scored=True)
        if step in checkpoints:
            write_checkpoint(path, step)
    if ending is not None:
        folder.end(ending)
    return read_trial(path)
