"""Finds missing or damaged parts of a run folder, and a repair for each. Reads everything, hashes included.

Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.controller.study import StudyRecorder
from orchestrator.controller.study_file import is_locked, read_study
from orchestrator.state.export_files import read_description, read_samples
from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from orchestrator.state.trial_folders import free_place, set_aside
from trials.records.adapter_check import adapter_problems, how_it_differs
from trials.records.checkpoints import broken_checkpoints, set_broken_aside
from trials.records.score_log import SCORINGS, SCORINGS_FILE
from trials.records.trial_dir import ENDING_FILE, METRICS_FILE, POINTS, Damage, DamagedTrial, TrialDir, TrialRecord
from trials.system.damage import DamagedFile, is_value, read_bytes, read_value
from trials.system.files import write_text

_OF_LINES: Mapping[str, TypeAdapter[Any]] = {METRICS_FILE: POINTS, SCORINGS_FILE: SCORINGS}
"""Files of a trial with a value in each line."""


@dataclass(frozen=True)
class Problem:
    """One missing or damaged part; `mend` repairs it and returns what it did, in words. None: it can't be repaired."""

    where: str
    what: str
    mend: Callable[[], str] | None = None


def problems(run: RunDir, *, weights: bool = True) -> Iterator[Problem]:
    """Yield all problems of a run folder; parts that are repaired between two of them are read as they are then.

    With `weights` False, adapters are not checked, as the working copy of a run folder on a store has no weights.
    """
    trials = run.read_trials()
    for damaged in trials.damaged:
        yield Problem(f"trials/{damaged.id}", damaged.reason, partial(_moved, run, damaged))
    for record in trials.records:
        yield from _of_trial(run, record, weights=weights)
    yield from _of_study(run)
    for name, damage in (("export/manifest.json", read_description(run)[1]), ("samples.json", read_samples(run)[1])):
        for what in damage:
            yield Problem(name, what, partial(_put_aside, run, run.path / name, Path(name).name))
    yield from _of_json(run, "timing.json")
    yield from _of_export(run)


def _of_trial(run: RunDir, record: TrialRecord, *, weights: bool) -> Iterator[Problem]:
    where = f"trials/{record.id}"
    for damage in record.all_damage():
        yield Problem(where, damage.text, _mending(run, record, damage))
    for name in _OF_LINES:
        if _is_cut(record.folder / name):
            yield Problem(where, f"the last line of {name} is cut", partial(_whole_lines, run, record, name))
    for what in _of_adapter(record) if weights else ():
        yield Problem(where, what, lambda: _put_aside(run, record.adapter, f"{record.id}-adapter"))
    for path in broken_checkpoints(record.folder):
        yield Problem(where, f"{path.name} isn't whole, and not used", lambda: _without_broken(record))


def _of_adapter(record: TrialRecord) -> Iterator[str]:
    """Yield problems of a trial's adapter; a missing one is none, as only the best are kept."""
    if record.adapter.exists() and record.points:
        yield from (f"adapter/{problem}" for problem in adapter_problems(record.adapter))


def _of_study(run: RunDir) -> Iterator[Problem]:
    if all(record.id == BASE_TRIAL_ID for record in run.records()):
        return
    try:
        is_readable = read_study(run) is not None
    except Exception as error:
        if not is_locked(error):
            raise
        yield Problem("study.db", "another program holds it, so it wasn't looked at")
        return
    if not is_readable:
        yield Problem("study.db", "it is damaged or gone", lambda: _made_anew(run))


def _of_json(run: RunDir, name: str) -> Iterator[Problem]:
    try:
        read_value(run.path / name)
    except DamagedFile as error:
        yield Problem(name, error.reason, lambda: _put_aside(run, run.path / name, name))


def _of_export(run: RunDir) -> Iterator[Problem]:
    manifest = read_description(run)[0]
    files: Any = (manifest or {}).get("files", {})
    for name, sha256 in files.items() if isinstance(files, dict) else ():
        difference = how_it_differs(run.export / name, sha256)
        if difference is not None:
            yield Problem("export", f"{name} {difference}; python -m orchestrator.export makes it again")


def _is_cut(path: Path) -> bool:
    try:
        content = read_bytes(path)
    except DamagedFile:
        return False
    return content is not None and content[-1:] not in (b"", b"\n")


def _mending(run: RunDir, record: TrialRecord, damage: Damage) -> Callable[[], str] | None:
    """Return the repair of a damaged file of a trial: its unusable content moves aside. None: it is gone."""
    if damage.is_gone:
        return None
    if damage.file in _OF_LINES:
        return partial(_whole_lines, run, record, damage.file)
    if damage.file == ENDING_FILE:
        return partial(_new_ending, run, record)
    return partial(_put_aside, run, record.folder / damage.file, f"{record.id}-{Path(damage.file).name}")


def _moved(run: RunDir, damaged: DamagedTrial) -> str:
    (path,) = set_aside(run.path, [damaged]).values()
    return f"set aside: it's {path} now"


def _put_aside(run: RunDir, path: Path, name: str) -> str:
    return f"set aside: it's {path.rename(free_place(run.path, name))} now"


def _new_ending(run: RunDir, record: TrialRecord) -> str:
    said = _put_aside(run, record.folder / ENDING_FILE, f"{record.id}-{ENDING_FILE}")
    if record.ending is not None:
        TrialDir(record.folder).end(record.ending)
    return f"{said}, and the trial counts as pruned"


def _whole_lines(run: RunDir, record: TrialRecord, name: str) -> str:
    """Keep the lines that can be read, one for each evaluation; the file as it was moves aside."""
    path = record.folder / name
    if not path.is_file():
        return _put_aside(run, path, f"{record.id}-{name}")
    shape = _OF_LINES[name]
    lines = [line for line in (read_bytes(path) or b"").split(b"\n")[:-1] if is_value(line, shape)]
    values = ((shape.validate_json(line), line) for line in reversed(lines))
    kept = {(value.step, value.tokens_seen): line for value, line in values}
    said = _put_aside(run, path, f"{record.id}-{name}")
    write_text(path, b"".join(kept[at] + b"\n" for at in sorted(kept)).decode())
    return f"{said}, and {len(kept)} of its lines are left"


def _without_broken(record: TrialRecord) -> str:
    set_broken_aside(record.folder)
    return "its name is broken-<step> now"


def _made_anew(run: RunDir) -> str:
    said: list[str] = []
    StudyRecorder(run, run.read_search().recipe, run.records(), said.append)
    return "; ".join(said)
