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
from orchestrator.run_folder import RunFolder, Search, open_run_folder, versions
from orchestrator.verification import MERGED_TOLERANCE, TOLERANCE, prove_export
from trials.command_line import run
from trials.files import replace_folder, write_json, write_text
from trials.records import Origin, TrialRecord

# PEFT's own README and our bookkeeping stay behind; the export gets a card of its own.
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Exported:
    """A verified export: where it is, and what its manifest says."""

    path: Path
    manifest: dict[str, Any]


def export_best(folder: RunFolder, to: Path | None = None, *, merge: bool = False) -> Exported:
    """Exports the best trial to `to` (default RUN/export); an earlier export stays until the new one is proved.

    Raises `NothingToExport` if no trial beats the base model, `ExportNotVerified` if the export, loaded again in a
    fresh process, doesn't give the trial's loss within 1e-3 nats per token.
    """
    search = folder.read_search()
    records = folder.records()
    best = pick_best(records)
    target = (to or folder.export).absolute()
    staging = target.with_name(target.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in _ADAPTER_FILES:
        shutil.copyfile(best.trial.adapter / name, staging / name)
    _save_tokenizer(search, staging)
    found = prove_export(staging, search.recipe, best.loss, merge=merge)
    manifest = _manifest(search, records, best, found)
    write_text(staging / "README.md", model_card(manifest, search.recipe))
    manifest["files"] = _hashes(staging)
    write_json(staging / "manifest.json", manifest)
    replace_folder(staging, target)
    write_json(folder.path / "samples.json", found.get("samples", []))
    return Exported(target, manifest)


def _save_tokenizer(search: Search, staging: Path) -> None:
    from trials.model import load_tokenizer

    load_tokenizer(search.recipe.model).save_pretrained(str(staging))


def _manifest(search: Search, records: Sequence[TrialRecord], best: Best, found: dict[str, Any]) -> dict[str, Any]:
    trial, loss = best.trial, found["eval_loss"]
    return {
        "trial": trial.id,
        "name": trial.name,
        "eval_loss": best.loss,
        "base_eval_loss": best.base.best_eval_loss,
        "gain": {"difference": best.gain.difference, "standard_error": best.gain.standard_error},
        "starting_points": [_against_start(record, trial) for record in records if record.origin is Origin.START],
        "verified": {"eval_loss": loss, "difference": abs(loss - best.loss), "tolerance": TOLERANCE},
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
    arguments.add_argument("run", type=Path, metavar="RUN", help="run folder")
    arguments.add_argument("--merge", action="store_true", help="also write full weights with the adapter merged in")
    arguments.add_argument("--to", type=Path, help="where the export goes (default: RUN/export)")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run(lambda: _export(parser().parse_args(argv)))


def _export(arguments: argparse.Namespace) -> int:
    exported = export_best(open_run_folder(arguments.run), arguments.to, merge=arguments.merge)
    manifest = exported.manifest
    print(f"exported trial {manifest['trial']} to {exported.path}")
    print(f"eval loss {manifest['eval_loss']:.4f}, base {manifest['base_eval_loss']:.4f}; verified in a fresh process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
