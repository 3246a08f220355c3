"""Whether a run folder still holds everything that was ever seen in it, once, and says the same everywhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from orchestrator.state.run_dir import BASE_TRIAL_ID, RunDir
from trials.records.trial_dir import TrialRecord
from trials.system.files import read_json_lines

Evaluations = dict[str, dict[int, float]]
"""Eval losses of every trial by step, in nats per token."""

TWIN_TOLERANCE = 1e-4
"""Nats per token between an evaluation and the same one made again."""


def evaluations(run: Path, before: Evaluations) -> Evaluations:
    """Those on disk now, added to those seen before."""
    found = {trial: dict(losses) for trial, losses in before.items()}
    for file in sorted((run / "trials").glob("*/metrics.jsonl")):
        for line in read_json_lines(file):
            found.setdefault(file.parent.name, {}).setdefault(line["step"], line["eval_loss"])
    return found


def problems(run: RunDir, seen: Evaluations, deadline: str | None) -> list[str]:
    """What's wrong, in sentences; none if nothing is."""
    search = json.loads((run.path / "search.json").read_text(encoding="utf-8"))
    moved = [] if search["deadline"] == deadline else [f"the deadline was {deadline}, and is {search['deadline']}"]
    return [
        *moved,
        *(problem for trial in sorted(seen) for problem in _lost(run.trial(trial), seen[trial])),
        *(problem for record in run.records() for problem in _twice(record)),
        *_study_problems(run),
        *_export_problems(run),
    ]


def _lost(folder: Path, seen: dict[int, float]) -> list[str]:
    """An evaluation is on record, or kept in a before-*/ folder; made again, it's the same."""
    on_record = {line["step"]: line["eval_loss"] for line in read_json_lines(folder / "metrics.jsonl")}
    kept = {line["step"] for file in folder.glob("before-*/metrics.jsonl") for line in read_json_lines(file)}
    found = [f"trial {folder.name} lost step {step}" for step in seen if step not in on_record.keys() | kept]
    for step in seen.keys() & on_record.keys():
        if abs(seen[step] - on_record[step]) > TWIN_TOLERANCE:
            found.append(f"trial {folder.name} had {seen[step]:.6f} at step {step}, and has {on_record[step]:.6f}")
    return found


def _twice(record: TrialRecord) -> list[str]:
    steps = [line["step"] for line in read_json_lines(record.folder / "metrics.jsonl")]
    return [] if steps == sorted(set(steps)) else [f"trial {record.id} has evaluations at steps {steps}"]


def _study_problems(run: RunDir) -> list[str]:
    study = optuna.load_study(study_name=None, storage=run.study_url)
    told = {f"{trial.number:04d}": trial for trial in study.trials[1:]}
    records = {record.id: record for record in run.records() if record.id != BASE_TRIAL_ID}
    found = [
        f"trial {name} is only in {'the study' if name in told else 'trials/'}" for name in told.keys() ^ records.keys()
    ]
    return found + [problem for name in told.keys() & records.keys() for problem in _told(told[name], records[name])]


def _told(trial: FrozenTrial, record: TrialRecord) -> list[str]:
    """What the study has of a trial is what its folder says; all of it once the trial has ended."""
    found = []
    values = {point.tokens_seen: point.best_eval_loss for point in record.points}
    is_told = trial.intermediate_values.items() <= values.items()
    if not is_told or (record.ending is not None and trial.intermediate_values != values):
        found.append(f"trial {record.id}: the study has {trial.intermediate_values}, its folder {values}")
    if record.state.is_complete is not (trial.state is OptunaState.COMPLETE):
        ending = "no ending" if record.ending is None else record.ending.kind.value
        found.append(f"trial {record.id} is {trial.state.name} in the study, with {ending} in its folder")
    return found


def _export_problems(run: RunDir) -> list[str]:
    path = run.export / "manifest.json"
    if not path.exists():
        return ["there is no export"]
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    verified = manifest["verified"]
    found = [] if verified["difference"] <= verified["tolerance"] else [f"the export is not verified: {verified}"]
    for name, digest in manifest["files"].items():
        if hashlib.sha256((run.export / name).read_bytes()).hexdigest() != digest:
            found.append(f"export/{name} isn't what its manifest says")
    return found
