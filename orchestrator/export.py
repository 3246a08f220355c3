"""Command line: picks the best trial, exports its adapter, and proves the export in a fresh process.

python -m orchestrator.export RUN [--merge] [--to DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.manifest_scores import manifest_scores
from orchestrator.model_card import model_card
from orchestrator.ranking import Best, gain_over, pick_best, rank
from orchestrator.run_folder import RunFolder, Search, versions
from orchestrator.run_places import bring_weights, open_at, publish
from orchestrator.verification import MERGED_TOLERANCE, TOLERANCE, Due, prove_export
from trials.command_line import run
from trials.errors import ExportNotVerified
from trials.files import replace_folder, write_json, write_text
from trials.records import Origin, TrialRecord

# PEFT's own README and our bookkeeping stay behind; the export gets a card of its own.
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Exported:
    """A verified export: where it is, and what its manifest says."""

    path: Path
    manifest: dict[str, Any]


def export_best(
    folder: RunFolder, to: Path | None = None, *, merge: bool = False, due_seconds: float | None = None
) -> Exported:
    """Exports the best trial to `to` (default RUN/export); an earlier export stays until the new one is proved.

    With `to`, nothing is written to RUN, which may be read-only. Where the proof takes longer than `due_seconds` and
    there's no earlier export, it's put in its place unproved, which it says; it's proved there, or taken away again.

    Raises `NothingToExport` if no trial beats the base model, `ExportNotVerified` if the export, loaded again in a
    fresh process, doesn't give the trial's loss within 1e-3 nats per token.
    """
    search = folder.read_search()
    records = folder.records()
    best = pick_best(records)
    bring_weights(best.trial)
    target = (to or folder.export).absolute()
    staging = target.with_name(target.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in _ADAPTER_FILES:
        shutil.copyfile(best.trial.adapter / name, staging / name)
    _save_tokenizer(search, staging)
    had_one = target.exists()
    due = None
    if due_seconds is not None and not had_one:
        due = Due(due_seconds, lambda: _put_unproved(staging, target, _manifest(search, records, best, {}), search))
    try:
        found = prove_export(staging, search.recipe, best.loss, merge=merge, due=due)
    except ExportNotVerified:
        if not had_one:
            shutil.rmtree(target, ignore_errors=True)
        raise
    manifest = _manifest(search, records, best, found)
    _complete(staging, manifest, search)
    replace_folder(staging, target)
    if to is None:
        write_json(folder.path / "samples.json", found.get("samples", []))
    return Exported(target, manifest)


def _put_unproved(staging: Path, target: Path, manifest: dict[str, Any], search: Search) -> None:
    """A copy, since the proof reads what is staged."""
    beside = target.with_name(target.name + ".unproved")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(staging, beside)
    _complete(beside, manifest, search)
    replace_folder(beside, target)


def _complete(export: Path, manifest: dict[str, Any], search: Search) -> None:
    """Model card and manifest, with the hashes of all other files."""
    write_text(export / "README.md", model_card(manifest, search.recipe))
    manifest["files"] = _hashes(export)
    write_json(export / "manifest.json", manifest)


def _save_tokenizer(search: Search, staging: Path) -> None:
    from trials.model import load_tokenizer

    load_tokenizer(search.recipe.model).save_pretrained(str(staging))


def _manifest(search: Search, records: Sequence[TrialRecord], best: Best, found: dict[str, Any]) -> dict[str, Any]:
    """What it says of itself; `found` by the proof, empty before that."""
    trial = best.trial
    return {
        "trial": trial.id,
        "name": trial.name,
        "eval_loss": best.loss,
        "base_eval_loss": best.base.best_eval_loss,
        "gain": {"difference": best.gain.difference, "standard_error": best.gain.standard_error},
        "starting_points": [_against_start(record, trial) for record in records if record.origin is Origin.START],
        "verified": _verified(found, best.loss),
        "merged": {"eval_loss": found["merged"], "tolerance": MERGED_TOLERANCE} if "merged" in found else None,
        "test": found.get("test"),
        "scores": manifest_scores(records, best),
        "config": trial.config.model_dump(mode="json"),
        "points": [{"tokens_seen": point.tokens_seen, "eval_loss": point.eval_loss} for point in trial.points],
        "trials": len(rank(records)),
        "base_model": {"name": search.recipe.model.name, "revision": search.recipe.model.revision},
        "versions": versions(),
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _verified(found: dict[str, Any], trial_loss: float) -> dict[str, float] | None:
    """What the proof says of the eval loss; None before it."""
    if "eval_loss" not in found:
        return None
    loss = found["eval_loss"]
    return {"eval_loss": loss, "difference": abs(loss - trial_loss), "tolerance": TOLERANCE}


def _against_start(start: TrialRecord, winner: TrialRecord) -> dict[str, Any]:
    """A starting point's loss, and by how much the winner's is lower, with its paired standard error."""
    described: dict[str, Any] = {"trial": start.id, "name": start.name, "eval_loss": start.best_eval_loss}
    gain = gain_over(start, winner)
    if gain is not None and start.id != winner.id:
        described |= {"difference": gain.difference, "standard_error": gain.standard_error}
    return described


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the export."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    arguments = argparse.ArgumentParser(prog="python -m orchestrator.export", description="Export the best adapter.")
    arguments.add_argument("run", metavar="RUN", help="run folder")
    arguments.add_argument("--merge", action="store_true", help="also write full weights with the adapter merged in")
    arguments.add_argument("--to", type=Path, help="where the export goes (default: RUN/export)")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run(lambda: _export(parser().parse_args(argv)))


def _export(arguments: argparse.Namespace) -> int:
    folder = open_at(arguments.run)
    exported = export_best(folder, arguments.to, merge=arguments.merge)
    if arguments.to is None:
        publish(folder, "export", "samples.json")
    manifest = exported.manifest
    print(f"exported trial {manifest['trial']} to {exported.path}")
    print(f"eval loss {manifest['eval_loss']:.4f}, base {manifest['base_eval_loss']:.4f}; verified in a fresh process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
