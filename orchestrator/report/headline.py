"""The report's first lines: which trial won, by how much, whether the export was verified, and the time used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.report.data import ReportData, trial_label
from orchestrator.state.selection import paired_gain, rank
from search_spaces.durations import format_duration
from trials.metrics.paired_tests import CANNOT_TELL, is_clear
from trials.metrics.row_losses import LossDifference
from trials.records.trial_dir import Origin, TrialRecord

_ALIKE = 1.1
"""Trials that differ in their tokens by no more than this factor are as long as each other."""


def headline(data: ReportData) -> str:
    """Return one sentence: the winner's loss, and its gain over the base and over every starting point."""
    best = data.best
    if best is None:
        return f"No adapter is worth exporting yet: {data.why_nothing}"
    winner = best.trial
    clauses = [_clause("the base model", best.base, best.gain)]
    is_start = winner.origin is Origin.START
    others = [name for name in data.search.recipe.start if not (is_start and name == winner.name)]
    clauses += [_start_clause(data, name, winner) for name in others]
    who = f"Trial {winner.id} ({trial_label(winner)})" if is_start else f"Trial {winner.id}"
    return f"{who} wins with an eval loss of {winner.best_eval_loss:.4f} nats per token: {_listed(clauses)}."


def significance_text(difference: LossDifference) -> str:
    """Say whether a difference stands out from the noise of the rows."""
    return "clear" if is_clear(difference) else CANNOT_TELL


def export_lines(data: ReportData) -> list[str]:
    """Return sentences on whether there is an export, whether it was verified, and its loss on the test rows."""
    manifest = data.manifest
    if manifest is None:
        if data.best is None:
            return ["There is no export, for the reason above."]
        return [
            f"Trial {data.best.trial.id} is not exported yet: there is no export/manifest.json. "
            "If the search is over, the export command below makes one."
        ]
    lines = [_verification(manifest)]
    exported = manifest.get("trial")
    if data.best is not None and exported is not None and exported != data.best.trial.id:
        best = data.best.trial.id
        why = _why_skipped(manifest, best)
        lines.append(f"The export holds trial {exported}; trial {best} {why or 'is better by now.'}")
    test = manifest.get("test")
    if isinstance(test, dict) and "eval_loss" in test:
        lines.append(_on_test_rows(test))
    return lines


def _why_skipped(manifest: Mapping[str, Any], trial_id: str) -> str | None:
    """Return why the export skipped a better trial; None: it didn't."""
    skipped = manifest.get("skipped")
    for each in skipped if isinstance(skipped, list) else []:
        if isinstance(each, dict) and each.get("trial") == trial_id:
            return f"has a lower loss, and was skipped: {each.get('reason')}"
    return None


def time_line(data: ReportData) -> str:
    """Return a sentence on the time used, the budget and the deadline."""
    deadline = data.search.deadline
    used = (data.last_written - deadline.started).total_seconds()
    budget = (deadline.ends - deadline.started).total_seconds()
    return (
        f"{format_duration(used)} used of a budget of {format_duration(budget)}: started {deadline.started:%H:%M}, "
        f"last written {data.last_written:%H:%M}, deadline {deadline.ends:%Y-%m-%d %H:%M} (UTC)."
    )


def _clause(name: str, other: TrialRecord, gain: LossDifference | None) -> str:
    loss = f"{other.best_eval_loss:.4f}"
    if gain is None:
        return f"{name} has {loss}, without a comparison row by row"
    amount = f"{abs(gain.difference):.4f} ± {gain.standard_error:.4f} {'below' if gain.difference >= 0 else 'above'}"
    if is_clear(gain):
        return f"{amount} {name}'s {loss} ({significance_text(gain)})"
    return f"{amount} {name}'s {loss} (the two {significance_text(gain)})"


def _start_clause(data: ReportData, name: str, winner: TrialRecord) -> str:
    of_that_name = [record for record in data.records if record.origin is Origin.START and record.name == name]
    evaluated = rank(of_that_name)
    if not evaluated:
        return f"starting point {name} has no eval loss to compare with"
    clause = _clause(f"starting point {name}", evaluated[0], paired_gain(evaluated[0], winner))
    return clause + _other_length(evaluated[0], winner)


def _other_length(start: TrialRecord, winner: TrialRecord) -> str:
    """Return what has to be said of a comparison of trials that were trained for different lengths."""
    if winner.tokens_seen <= _ALIKE * start.tokens_seen:
        return ""
    return f", which was trained for {start.tokens_seen:,} tokens and the winner for {winner.tokens_seen:,}"


def _listed(clauses: list[str]) -> str:
    """Join clauses by semicolons, because a clause may hold commas."""
    return "; ".join(clauses[:-1]) + "; and " + clauses[-1] if len(clauses) > 1 else clauses[0]


def _verification(manifest: Mapping[str, Any]) -> str:
    exported = f"The export holds trial {manifest.get('trial', '(unnamed)')}"
    verified = manifest.get("verified")
    if not isinstance(verified, dict) or not {"eval_loss", "difference", "tolerance"} <= verified.keys():
        return f"{exported}; its manifest has no figures of a verification."
    figures = (
        f"loaded again it gives {verified['eval_loss']:.4f}, {abs(verified['difference']):.2g} off the trial's own "
        f"figure (allowed: {verified['tolerance']:.2g})"
    )
    if abs(verified["difference"]) <= verified["tolerance"]:
        return f"{exported} and was verified: {figures}."
    return f"{exported} but was NOT verified: {figures}. Don't use it."


def _on_test_rows(test: Mapping[str, Any]) -> str:
    line = f"On the test rows, which the search never looked at, its loss is {test['eval_loss']:.4f}"
    if "base_eval_loss" not in test:
        return line + "."
    gain = test["base_eval_loss"] - test["eval_loss"]
    line += f" against the base model's {test['base_eval_loss']:.4f}"
    if not {"standard_error", "rows"} <= test.keys():
        return f"{line}, a gain of {gain:.4f}."
    difference = LossDifference(gain, test["standard_error"], test["rows"])
    return f"{line}, a gain of {gain:.4f} ± {difference.standard_error:.4f} ({significance_text(difference)})."
