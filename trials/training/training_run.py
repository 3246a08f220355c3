"""One run of a trial, as its launcher asks for it, and the interface of the backends that train it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.records.checkpoints import Checkpoint, resumed_timer
from trials.records.trial_dir import Ending, EvalPoint, TrialDir, read_trial
from trials.system.distributed import ALONE, ProcessGroup
from trials.system.timer import TrialTimer
from trials.training.heartbeat import Heartbeat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Decision(Enum):
    """Answer to a trial after an evaluation."""

    CONTINUE = "go on"
    STOP = "stop"


OnEval = Callable[[EvalPoint], Decision]
OnLog = Callable[[Mapping[str, float]], None]
"""Receives values by the names that transformers gives them in W&B, such as train/loss."""


def never() -> bool:
    """Return False: only the answer after an evaluation stops the trial."""
    return False


def unheard(figures: Mapping[str, float]) -> None:
    """Ignore what a trial logs."""


@dataclass(frozen=True)
class TrainingRun:
    """One run of a trial: of all of it, or of one segment between two pauses.

    With a checkpoint, training continues as if it had never stopped; `trials.records.rewind.rewind` must come first.
    After `trials.records.extension.extend` the configuration has a greater length than before.
    """

    config: TrialConfig
    data: TrialData
    tokenizer: PreTrainedTokenizerBase
    folder: TrialDir
    """Folder for the trial's evaluations, best adapter, checkpoints and ending."""
    on_eval: OnEval
    """Called after every evaluation, on the first rank. If it says stop, its own side records why."""
    stop_at: float = math.inf
    """Time at which the trial is evaluated once more and ends, in seconds since the Unix epoch."""
    checkpoint: Checkpoint | None = None
    """Checkpoint from which the trial resumes; None: it begins."""
    is_called_off: Callable[[], bool] = never
    """Whether the trial is no longer wanted; asked after every optimizer step. It then ends without an ending."""
    on_log: OnLog = unheard
    """Receives what is logged between evaluations: the training loss, the learning rate."""
    ranks: ProcessGroup = ALONE
    """Processes that train this trial: all of them ask the same questions in the same order."""
    timer: TrialTimer = None  # type: ignore[assignment]
    """Clock of the trial; by default it starts now, with the seconds that the trial had at the checkpoint."""
    finishes_at_stop: bool = False
    """Whether the trial has finished at `stop_at`, however far it came; else it is out of time."""

    def __post_init__(self) -> None:
        """Start the clock if none was given."""
        if self.timer is None:
            object.__setattr__(self, "timer", resumed_timer(self.checkpoint))

    def resting_in(self, heartbeat: Heartbeat) -> TrainingRun:
        """Return the run with its waits, for other ranks and for `on_eval`, not counted as work by `heartbeat`."""

        def on_eval(point: EvalPoint) -> Decision:
            with heartbeat.resting():
                return self.on_eval(point)

        return replace(self, on_eval=on_eval, ranks=replace(self.ranks, resting=heartbeat.resting))

    def time_is_over(self) -> bool:
        """Return whether training has to end, on any rank."""
        return self.ranks.any(time.time() >= self.stop_at)

    def has_been_called_off(self) -> bool:
        """Return what `is_called_off` says, true if it is true on any rank."""
        return self.ranks.any(self.is_called_off())

    def ask(self, point: EvalPoint) -> Decision:
        """Return the answer of `on_eval`, which is called on the first rank only."""
        return self.ranks.on_rank_zero(lambda: self.on_eval(point))

    @property
    def is_sharded(self) -> bool:
        """Whether the ranks share the base's layers, each of which all of them must pass together."""
        return self.config.machine.fsdp and self.ranks.world_size > 1

    @property
    def base_eval_loss(self) -> float | None:
        """Eval loss of the untrained base, in nats per token; None if neither checkpoint nor config has it."""
        return self.config.base_eval_loss if self.checkpoint is None else self.checkpoint.progress.base_eval_loss

    def points_so_far(self) -> Sequence[EvalPoint]:
        """Return the evaluations on record if the trial resumes from a checkpoint, else none."""
        return () if self.checkpoint is None else read_trial(self.folder.path).points


class TrialBackend(Protocol):
    """Trainer of trials in this process: the engine, which trains many at once, or TRL, which trains one at a time."""

    @property
    def has_ended(self) -> bool:
        """Whether the backend was closed or has failed through no trial's fault; it refuses trials from then on."""

    def run(self, run: TrainingRun) -> Ending | None:
        """Train one adapter, and leave its evaluations, best adapter and ending in the run's folder.

        Returns how the trial ended; None if the callback stopped it or it was called off: the launcher's side then
        writes the ending. Running out of memory is an ending; any other error is recorded as `failed` and raised.
        """

    def evaluate_base(self, run: TrainingRun) -> Ending:
        """Evaluate the base model without an adapter, the baseline of all trials. Errors are recorded and raised."""

    def seconds_since_progress(self) -> float | None:
        """Return the seconds since the oldest of the threads' last heartbeats; None: no thread has work.

        A thread that waits for another one, for another rank or for `on_eval` isn't counted.
        """

    def close(self) -> None:
        """End the backend; trials that still train are interrupted."""
