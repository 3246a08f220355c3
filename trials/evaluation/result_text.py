"""Text of evaluations and comparisons, as lines and tables for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich.console import RenderableType
from rich.table import Table

from trials.evaluation.comparison import Comparison
from trials.evaluation.result import Answers, EvalResult, by_length, labels_of, loss_estimate
from trials.formats.conversations import NLI_LABELS
from trials.metrics.classification import LabelReport
from trials.metrics.intervals import Estimate, bootstrap_mean
from trials.metrics.paired_tests import CANNOT_TELL, Better, LabelComparison, LossComparison, ScoreComparison


def result_lines(result: EvalResult) -> Iterator[RenderableType]:
    """Yield the loss, and the task's own measure if answers were asked for."""
    losses = result.losses
    interval = loss_estimate(losses)
    yield (
        f"eval loss {losses.mean:.4f} nats per token, {len(losses.loss_sums)} rows, "
        f"standard error {losses.standard_error:.4f}, 95 % {interval.low:.4f} to {interval.high:.4f}"
    )
    if result.answers is not None:
        report = labels_of(result.answers)
        yield from _of_labels(report) if report else _of_text(result, result.answers)


def _of_labels(report: LabelReport) -> Iterator[RenderableType]:
    rows = [("accuracy", report.accuracy), ("macro-F1", report.macro_f1)]
    for found in reversed(report.classes):
        rows += [(f"precision of {found.label}", found.precision), (f"recall of {found.label}", found.recall)]
        rows.append((f"F1 of {found.label}", found.f1))
    rows.append(("not parsed", report.unparsed))
    yield _table(["labels", "%", "95 %"], [(name, f"{100 * e.value:.1f}", _range(e, 100, 1)) for name, e in rows])
    yield _table(
        ["true label", *(f"answered {label}" for label in NLI_LABELS), "not parsed"],
        [(str(label), *map(str, counts)) for label, counts in zip(NLI_LABELS, report.confusion, strict=True)],
    )
    commonest = report.commonest
    yield f"answering {commonest.label} always would be right in {100 * commonest.rows / report.rows:.1f} %"


def _of_text(result: EvalResult, answers: Answers) -> Iterator[RenderableType]:
    rouge = bootstrap_mean(answers.scores.values)
    yield f"ROUGE-L {rouge.value:.4f}, 95 % {_range(rouge, 1, 4)}"
    if answers.wordless_references:
        yield (
            f"  {answers.wordless_references} references have no Latin letter or digit: ROUGE-L sees no words there, "
            "and scores 0"
        )
    yield _table(
        ["reference tokens", "rows", "ROUGE-L", "loss", "answer tokens"],
        [
            (
                f"{part.shortest} to {part.longest}",
                str(part.rows),
                f"{part.score:.4f}",
                f"{part.loss:.4f}",
                f"{part.answer_tokens:.1f}",
            )
            for part in by_length(result, answers)
        ],
    )


def comparison_lines(comparison: Comparison, a: str, b: str) -> Iterator[RenderableType]:
    """Yield which model is better by each measure, and by how much."""
    if comparison.loss is None:
        yield f"loss: not comparable, {a} and {b} cut the same text into different tokens"
    else:
        yield _of_loss(comparison.loss, a, b)
    if isinstance(comparison.score, LabelComparison):
        yield from _of_right_labels(comparison.score, a, b)
    elif comparison.score is not None:
        yield _of_scores(comparison.score, a, b)


def _of_loss(found: LossComparison, a: str, b: str) -> str:
    said = _said(found.better, found.difference, (a, b), lambda number: f"{number:.4f}")
    return (
        f"loss: {said} nats per token, paired standard error {found.standard_error:.4f}; "
        f"{a} {found.a:.4f}, {b} {found.b:.4f}"
    )


def _of_right_labels(found: LabelComparison, a: str, b: str) -> Iterator[RenderableType]:
    said = _said(found.better, found.difference, (a, b), lambda number: f"{100 * number:.1f}")
    yield f"labels: {said} points, McNemar's exact p = {found.p_value:.2g}"
    yield _table(
        ["rows", f"{b} right", f"{b} wrong"],
        [
            (f"{a} right", str(found.both_right), str(found.only_a_right)),
            (f"{a} wrong", str(found.only_b_right), str(found.both_wrong)),
        ],
    )


def _of_scores(found: ScoreComparison, a: str, b: str) -> str:
    said = _said(found.better, found.difference, (a, b), lambda number: f"{number:.4f}")
    return f"ROUGE-L: {said}; {a} {found.a:.4f}, {b} {found.b:.4f}"


def _said(better: Better, difference: Estimate, names: tuple[str, str], shown: Callable[[float], str]) -> str:
    """Return which model is better and by how much, as a number above 0.

    If the test can't tell, that is said, with the signed difference.
    """
    a, b = names
    value, low, high = difference.value, difference.low, difference.high
    if better is None:
        return f"{a} and {b} {CANNOT_TELL}: {b} - {a} is {shown(value)} (95 % {shown(low)} to {shown(high)})"
    if value < 0:
        value, low, high = -value, -high, -low
    return f"{a if better == 'a' else b} is better by {shown(value)} (95 % {shown(low)} to {shown(high)})"


def _range(estimate: Estimate, scale: float, digits: int) -> str:
    return f"{scale * estimate.low:.{digits}f} to {scale * estimate.high:.{digits}f}"


def _table(headers: list[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
