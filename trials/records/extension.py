"""Extension of a trial: a greater length for one that is paused, or has been trained for all its steps. Needs no torch.

Only an open-ended schedule (`trials.config.Hyperparameters.is_open_ended`) allows it. The trial then goes on as if it
had been that long from the beginning; it only has had more evaluations: those of its earlier length.

The process may die in between. Calling `extend` again does the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trials.config import LENGTHS, TrialConfig
from trials.errors import RunFolderError
from trials.records.checkpoints import Checkpoint, whole_checkpoints
from trials.records.rewind import restore_newest_checkpoint
from trials.records.trial_dir import TrialDir, TrialRecord, read_trial
from trials.state import TrialState
from trials.system.files import recover_folder

_MAY_DIFFER = {
    "hyperparameters": set(LENGTHS),
    "evaluation": True,
    "machine": True,
    "tracking": True,
    "base_eval_loss": True,
    "score_at_tokens": True,
}
"""Settings that change no step of a trial."""


def extend(folder: Path, longer: TrialConfig) -> Checkpoint | None:
    """Record a trial's greater length, remove its ending, and return the checkpoint from which it goes on.

    None: it was paused without one, and begins again, with nothing on record; see `trials.records.rewind`. Only the
    folder's owner may call this, with no other process writing.

    Raises:
        RunFolderError: If its schedule has an end, if it ended otherwise than by its last step, if it left no
            checkpoint, or if more than its length is another or that is smaller. The folder is unchanged then.
    """
    recover_folder(folder / "adapter")
    record = read_trial(folder)
    _refuse(record, longer)
    trial = TrialDir(folder)
    # In this order: a trial without an ending that has its earlier length would be trained for that only.
    trial.replace_config(longer)
    trial.remove_ending()
    return restore_newest_checkpoint(read_trial(folder))


def _refuse(record: TrialRecord, longer: TrialConfig) -> None:
    folder, hyperparameters = record.folder, record.config.hyperparameters
    if not hyperparameters.is_open_ended:
        raise RunFolderError(
            f"{folder} can't be extended: under scheduler {hyperparameters.scheduler} its learning rates follow from "
            "its length. Use inverse_sqrt for trials that are to be extended."
        )
    if _decisive(longer) != _decisive(record.config):
        raise RunFolderError(f"{folder} can't be extended to another configuration. Change nothing but its length.")
    before, after = (each.model_dump(include=set(LENGTHS)) for each in (hyperparameters, longer.hyperparameters))
    shorter = [name for name in LENGTHS if before[name] and after[name] and after[name] < before[name]]
    if shorter:
        raise RunFolderError(f"{folder} can't be extended to fewer {shorter[0]}: {after[shorter[0]]}. Give more.")
    ending = record.ending
    if ending is None:
        return
    if ending.kind is not TrialState.FINISHED:
        raise RunFolderError(
            f"{folder} has ended ({ending.kind.value}: {ending.reason}). Only a trial that was paused, cut off or "
            "trained for all its steps can be extended."
        )
    if not whole_checkpoints(folder):
        raise RunFolderError(f"{folder} has ended and holds no whole checkpoint, so there is nothing to extend.")


def _decisive(config: TrialConfig) -> dict[str, Any]:
    return config.model_dump(exclude=_MAY_DIFFER)  # type: ignore[arg-type]  # pydantic wants literal types
