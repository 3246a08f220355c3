"""What runs on a worker: one Tune trial at a time, in a process that Ray keeps for the next one.

Beside `orchestrator.tuner` the only module that imports Ray.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from trials.command_line import quiet_libraries
from trials.config import DataSettings, ModelSettings, TrialConfig
from trials.data import TrialData, load_data
from trials.errors import DataError
from trials.records import EvalPoint, Origin, TrialFolder
from trials.tracking import wandb_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trials.supervisor import Decision


def run_assignment(assignment: dict[str, Any]) -> None:
    """Runs one trial; `assignment` is what `orchestrator.tuner` made of the conductor's `Assignment`."""
    from trials.training import evaluate_base, run_trial, use_threads

    config = TrialConfig.model_validate_json(assignment["config"])
    folder = TrialFolder(Path(assignment["folder"]))
    quiet_libraries()
    use_threads(config.machine)
    tokenizer, data = _load(config.model, config.data, assignment["fingerprint"])
    report = _Report()
    with wandb_run(folder.path, config, group=assignment["group"]) as log:
        if assignment["origin"] == Origin.BASE.value:
            evaluate_base(config, data, tokenizer, folder, report)
            log(report.last)
        else:
            run_trial(config, data, tokenizer, folder, report, stop_at=assignment["stop_at"])
    if report.stopped is not None:
        # Ray ends the thread of a trial by this exception; it has to reach Ray for the process to be used again.
        raise report.stopped


class _Report:
    """Reports every evaluation to Tune, and turns Tune's way to stop a thread into the trial's word for it."""

    def __init__(self) -> None:
        self.stopped: SystemExit | None = None
        self.last: dict[str, float] = {}
        """As transformers names it where it logs a trial's evaluations."""

    def __call__(self, point: EvalPoint) -> Decision:
        from trials.supervisor import Decision

        self.last = {"eval/loss": point.eval_loss, **({} if point.score is None else {"eval/score": point.score})}
        try:
            tune.report(asdict(point))
        except SystemExit as stop:
            self.stopped = stop
            return Decision.STOP
        return Decision.GO_ON


@functools.lru_cache(maxsize=1)
def _load(
    model: ModelSettings, data: DataSettings, fingerprint: str | None
) -> tuple[PreTrainedTokenizerBase, TrialData]:
    """Tokenizer and rows: opened once per process, the same for all trials of a search.

    Raises `DataError` if the rows aren't those that the search began with.
    """
    from trials.model import load_tokenizer

    tokenizer = load_tokenizer(model)
    loaded = load_data(data, tokenizer)
    if fingerprint is not None and loaded.fingerprint != fingerprint:
        raise DataError("the data or the tokenizer has changed since the search began. Restore it, and resume.")
    return tokenizer, loaded
