"""Command line that exports the best trial's adapter and verifies the export in a fresh process.

python -m orchestrator.export RUN [--merge] [--to DIR]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.export.model_card import model_card
from orchestrator.export.scores import manifest_scores
from orchestrator.export.target import Staging, refuse_target, set_strangers_aside, staging_beside
from orchestrator.export.verification import MERGED_TOLERANCE, VerificationDeadline, allowed_difference, verify_export
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from orchestrator.state.search_file import versions
from orchestrator.state.selection import Best, Candidates, Skipped, candidates, paired_gain, rank
from orchestrator.storage.locations import fetch_weights, open_run, upload
from trials.cli import run_command
from trials.errors import ExportNotVerified, first_line
from trials.records.adapter_check import ADAPTER_FILES, adapter_problem, sha256_of
from trials.records.export_manifest import MANIFEST
from trials.records.trial_dir import Origin, TrialRecord
from trials.system.disk_full import disk_full_in
from trials.system.files import write_json, write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A verified export: its folder, and the content of its manifest."""

    path: Path
    manifest: dict[str, Any]
    kept: Path | None = None
    """New path of what was in the way of the run folder's own export; None: nothing was."""

    def lines(self) -> list[str]:
        """Return sentences on trials that were skipped, and on what was moved out of the way, if any."""
        said = [
            f"trial {each['trial']} is better and was skipped: {each['reason']}" for each in self.manifest["skipped"]
        ]
        return said if self.kept is None else [*said, f"what was in {self.path} is in {self.kept} now"]


def export_best(
    folder: RunDir, to: Path | None = None, *, merge: bool = False, due_seconds: float | None = None
) -> Exported:
    """Export the best trial that can be verified to `to` (default RUN/export); an earlier export stays until then.

    A trial is skipped if its adapter is damaged, can't be loaded or doesn't give the trial's loss. Then the next trial
    that clearly beats the base model is tried.

    With `to`, nothing is written to RUN, which may be read-only. If verification takes longer than `due_seconds` and
    there is no earlier export, the export is put in place unverified, and its manifest says so. The verified export
    then replaces it; if verification fails, it is removed.

    Raises `RunFolderError` if `to` holds anything but an earlier export, and `NothingToExport` if no trial beats the
    base model. Raises `ExportNotVerified` if no adapter of those that do, loaded again in a fresh process, gives the
    trial's loss within 1e-3 nats per token.
    """
    if to is not None:
        refuse_target(to.absolute(), folder.path)
    target = folder.export.absolute() if to is None else to.resolve()
    due = None if due_seconds is None else time.monotonic() + due_seconds
    search, records = folder.read_search(), folder.records()
    found = candidates(records)
    with staging_beside(target, folder.path, may_set_aside=to is None) as staging:
        kept = set_strangers_aside(target) if to is None else None
        proved = _first_proved(_Attempts(search, records, staging, merge, due, target.exists()), found)
    if to is None:
        _keep_samples(folder, proved.found)
    return Exported(target, proved.manifest, kept)


@dataclass(frozen=True)
class _Proved:
    manifest: dict[str, Any]
    found: dict[str, Any]
    """Result of the verification process."""


def _first_proved(attempts: _Attempts, found: Candidates) -> _Proved:
    """Export trials in the order of their ranking until one is verified and in place."""
    skipped, last = list(found.skipped), ""
    for best in found.best:
        try:
            return attempts.export(best, skipped)
        except ExportNotVerified as error:
            if len(found.best) == 1 and not skipped:
                raise
            reason = str(error).strip().splitlines()[-1].removeprefix("error: ")
            skipped.append(Skipped(best.trial, reason))
            if reason == last:  # two in a row failed alike: the cause isn't in the adapters
                break
            last = reason
    left = len(found.best) - len(skipped) + len(found.skipped)
    words = [f"trial {each.trial.id}: {each.reason}" for each in skipped]
    if left:
        words.append(f"{left} more weren't tried, as the last two failed alike.")
    raise ExportNotVerified("\n  ".join(["none of the trials that beat the base model can be exported.", *words]))


@dataclass(frozen=True)
class _Attempts:
    """Attempts to export one trial after another to the same target."""

    search: Search
    records: Sequence[TrialRecord]
    staging: Staging
    merge: bool
    due: float | None
    """Deadline in seconds of `time.monotonic`; None: verification may take any time."""
    had_one: bool
    """Whether there is an earlier export, which stays until another one is verified."""

    def export(self, best: Best, skipped: Sequence[Skipped]) -> _Proved:
        """Verify a trial's adapter and put it in place. Raises `ExportNotVerified`."""
        made = self._stage(best)
        try:
            found = verify_export(
                made, self.search.recipe, best.loss, merge=self.merge, due=self._due(made, best, skipped)
            )
        except ExportNotVerified:
            self.staging.take_away()
            raise
        return _Proved(self._put(made, best, skipped, found), found)

    def _stage(self, best: Best) -> Path:
        try:
            fetch_weights(best.trial)
        except FileNotFoundError as error:
            raise ExportNotVerified(f"its weights are no longer on the store: {error}") from error
        problem = adapter_problem(best.trial.adapter)
        if problem is not None:
            raise ExportNotVerified(problem)
        made = self.staging.empty("export")
        for name in ADAPTER_FILES:
            shutil.copyfile(best.trial.adapter / name, made / name)
        _save_tokenizer(self.search, made)
        return made

    def _due(self, made: Path, best: Best, skipped: Sequence[Skipped]) -> VerificationDeadline | None:
        """Return the deadline for verification; None if there is none, or if an earlier export is in place.

        At the deadline a copy of the export is put in place unverified. It is a copy because verification still reads
        the staged one.
        """
        if self.due is None or self.had_one:
            return None

        def put_unproved() -> None:
            unproved = self.staging.empty("unproved")
            shutil.copytree(made, unproved, dirs_exist_ok=True)
            self._put(unproved, best, skipped, {})

        return VerificationDeadline(self.due - time.monotonic(), put_unproved)

    def _put(self, made: Path, best: Best, skipped: Sequence[Skipped], found: dict[str, Any]) -> dict[str, Any]:
        manifest = _manifest(self.search, self.records, best, found)
        manifest["skipped"] = [each.as_json() for each in skipped]
        _complete(made, manifest, self.search)
        self.staging.put_in_place(made)
        return manifest


def _keep_samples(folder: RunDir, found: dict[str, Any]) -> None:
    try:
        write_json(folder.path / "samples.json", found.get("samples", []))
    except OSError as error:  # the export itself is in place
        logger.warning("the samples aren't kept in samples.json: %s", error.strerror)


def _complete(export: Path, manifest: dict[str, Any], search: Search) -> None:
    """Write the model card, then the manifest with the hashes of all other files."""
    write_text(export / "README.md", model_card(manifest, search.recipe))
    manifest["files"] = _hashes(export)
    write_json(export / MANIFEST, manifest)


def _save_tokenizer(search: Search, staging: Path) -> None:
    from trials.model.loading import load_tokenizer

    load_tokenizer(search.recipe.model).save_pretrained(str(staging))


def _manifest(search: Search, records: Sequence[TrialRecord], best: Best, found: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the manifest; `found` is the result of verification, empty before it."""
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
        "scores": _scores(records, best),
        "config": trial.config.model_dump(mode="json"),
        "points": [{"tokens_seen": point.tokens_seen, "eval_loss": point.eval_loss} for point in trial.points],
        "trials": len(rank(records)),
        "base_model": {"name": search.recipe.model.name, "revision": search.recipe.model.revision},
        "versions": versions(),
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _scores(records: Sequence[TrialRecord], best: Best) -> dict[str, Any] | None:
    """Return the manifest's scores; None without any, or if their files are damaged, as scores decide nothing."""
    try:
        return manifest_scores(records, best)
    except Exception as error:
        logger.warning("the scores are left out, as they can't be read: %s", first_line(error))
        return None


def _verified(found: dict[str, Any], trial_loss: float) -> dict[str, float] | None:
    """Return the eval loss that verification measured, and its difference to the trial's; None before verification."""
    if "eval_loss" not in found:
        return None
    loss = found["eval_loss"]
    return {"eval_loss": loss, "difference": abs(loss - trial_loss), "tolerance": allowed_difference(trial_loss, found)}


def _against_start(start: TrialRecord, winner: TrialRecord) -> dict[str, Any]:
    """Return a starting point's loss, and by how much the winner's is lower, with the paired standard error."""
    described: dict[str, Any] = {"trial": start.id, "name": start.name, "eval_loss": start.best_eval_loss}
    described["tokens_seen"] = start.tokens_seen
    gain = paired_gain(start, winner)
    if gain is not None and start.id != winner.id:
        described |= {"difference": gain.difference, "standard_error": gain.standard_error}
    return described


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file, by its path in the export."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(prog="python -m orchestrator.export", description="Export the best adapter.")
    arguments.add_argument("run", metavar="RUN", help="run folder")
    arguments.add_argument("--merge", action="store_true", help="also write full weights with the adapter merged in")
    arguments.add_argument("--to", type=Path, help="where the export goes (default: RUN/export)")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _export(parser().parse_args(argv)))


def _export(arguments: argparse.Namespace) -> int:
    folder = open_run(arguments.run)
    with disk_full_in(arguments.to or folder.path):
        exported = export_best(folder, arguments.to, merge=arguments.merge)
    if arguments.to is None:
        upload(folder, "export", "samples.json")
    for line in exported.lines():
        sys.stderr.write(f"{line}\n")
    manifest = exported.manifest
    print(f"exported trial {manifest['trial']} to {exported.path}")
    print(f"eval loss {manifest['eval_loss']:.4f}, base {manifest['base_eval_loss']:.4f}; verified in a fresh process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
