"""Reads all trials of a run folder, and sets damaged ones aside. Imports neither torch nor Ray.

RUN/damaged/<id>-<n>/  an unusable trial folder, moved here unchanged; n from 1
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trials.errors import RunFolderError
from trials.records.trial_dir import DamagedTrial, Origin, TrialRecord, read_trial
from trials.system.files import recover_folder

BASE_ID = "0000"
_DAMAGED = "damaged"
_OF_A_TRIAL = frozenset({"config.json", "metrics.jsonl", "eval_rows.json", "ending.json", "adapter", "checkpoints"})
_MOST_MISSING = 1000
"""Largest gap between two ids of a search. A number beyond that, such as a date, was not given by the search."""


@dataclass(frozen=True)
class Trials:
    """Usable and damaged trials of a run folder, ordered by id."""

    records: tuple[TrialRecord, ...]
    damaged: tuple[DamagedTrial, ...]

    def lines(self) -> list[str]:
        """Return a line about each damaged trial, and about every damaged file of the usable ones."""
        said = [f"trial {each.id} is left out: {each.reason}" for each in self.damaged]
        return said + [f"trial {record.id}: {damage}" for record in self.records for damage in record.all_damage()]


def read_trials(folder: Path) -> Trials:
    """Read all trials in `folder`, which is RUN/trials. A subfolder without any file of a trial is left out."""
    records: list[TrialRecord] = []
    damaged: list[DamagedTrial] = []
    for path in _entries(folder):
        found = _look_at(path, records)
        if isinstance(found, TrialRecord):
            records.append(found)
        elif found is not None:
            damaged.append(DamagedTrial(path.name, path, found))
    return Trials(tuple(records), tuple(damaged))


def sound_trials(run: Path, say: Callable[[str], None]) -> list[TrialRecord]:
    """Return the usable trials of a run folder, and set the others aside; `say` is told of every damaged file.

    To be called before trials start: it completes the replacing of adapters that a crash has cut off.
    """
    trials = run / "trials"
    trials.mkdir(exist_ok=True)
    for folder in trials.iterdir():
        recover_folder(folder / "adapter")
    found = read_trials(trials)
    lost = [*found.damaged, *map(_of_no_use, filter(_is_base_without_rows, found.records))]
    reasons = {each.id: each.reason for each in lost}
    for trial_id, path in set_aside(run, lost).items():
        say(f"trial {trial_id} can't be used ({reasons[trial_id]}), and is set aside: it's {path} now")
    sound = [record for record in found.records if record.folder.exists()]
    for record in sound:
        for damage in record.all_damage():
            say(f"trial {record.id}: {damage}")
    return sound


def set_aside(run: Path, trials: Iterable[DamagedTrial]) -> dict[str, Path]:
    """Move trials to RUN/damaged, under unused names; return the new paths by id."""
    return {each.id: each.folder.rename(free_place(run, each.id)) for each in trials}


def free_place(run: Path, name: str) -> Path:
    """Return an unused path in RUN/damaged: the name and a number. Creates RUN/damaged."""
    (run / _DAMAGED).mkdir(exist_ok=True)
    number = 1
    while (target := run / _DAMAGED / f"{name}-{number}").exists() or target.is_symlink():
        number += 1
    return target


def ids_set_aside(run: Path, records: Iterable[TrialRecord]) -> set[str]:
    """Return the ids of trained trials in RUN/damaged, which no new trial may get.

    The ids of `records` are left out, as are ids so high that the search can't have given them.
    """
    names = (path.name.rpartition("-")[0] for path in _entries(run / _DAMAGED))
    known = {record.id for record in records}
    highest, found = max(map(int, known), default=0), set()
    for trial_id in sorted({name for name in names if _is_id(name)} - known - {BASE_ID}, key=int):
        if int(trial_id) - highest <= _MOST_MISSING:
            highest = max(highest, int(trial_id))
            found.add(trial_id)
    return found


def _is_base_without_rows(record: TrialRecord) -> bool:
    return record.origin is Origin.BASE and bool(record.points) and record.row_losses() is None


def _of_no_use(base: TrialRecord) -> DamagedTrial:
    """Return a base model's record without row losses as damaged, so that it is evaluated again.

    Without them no trial can be shown to be better than the base model.
    """
    return DamagedTrial(base.id, base.folder, "; ".join(map(str, base.all_damage())))


def _look_at(path: Path, before: list[TrialRecord]) -> TrialRecord | str | None:
    """Return the trial at a path, or the reason why it can't be used; None: the path is no trial.

    `before` are the trials read so far, of lower ids.
    """
    try:
        if not path.is_dir():
            return _no_folder(path)
        if not _OF_A_TRIAL & {inside.name for inside in path.iterdir()}:
            return None
        if path.is_symlink() and path.resolve().parent == path.parent.resolve():
            return f"it's a link to {path.resolve().name}"
    except (OSError, RuntimeError) as error:
        return f"it can't be opened: {getattr(error, 'strerror', None) or error}"
    return _read(path, before) if _is_id(path.name) else "its name is no number of a trial: is it a copy?"


def _read(path: Path, before: list[TrialRecord]) -> TrialRecord | str:
    try:
        return _in_its_place(read_trial(path), before)
    except RunFolderError as error:
        return str(error.__cause__ or error).removeprefix(f"{path}/").partition(". Restore it")[0]


def _in_its_place(record: TrialRecord, before: list[TrialRecord]) -> TrialRecord | str:
    if (record.id == BASE_ID) != (record.origin is Origin.BASE):
        return f"its config.json is of another trial: {BASE_ID} is the base model, and no other is"
    if int(record.id) - max((int(other.id) for other in before), default=0) > _MOST_MISSING:
        return "the search gave no trial so high a number"
    for other in before:
        # Seconds and losses are measured to many digits, so two trials with equal ones are copies.
        same = record.points and other.id != BASE_ID and (record.points, record.config) == (other.points, other.config)
        if same and record.row_losses() == other.row_losses():
            return f"it's a copy of trial {other.id}"
    return record


def _no_folder(path: Path) -> str | None:
    """Return the reason why a path that is no folder is a problem; None: it is a file without the name of a trial."""
    if path.is_symlink() and not path.exists():
        return "it's a link that leads nowhere"
    return "it is no folder" if _is_id(path.name) else None


def _is_id(name: str) -> bool:
    """Whether a search could have given the name: zero-padded to four digits, nine digits at most."""
    return re.fullmatch("[0-9]{4,9}", name) is not None and name == f"{int(name):04d}"


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return
