"""Command line that writes the report: report.html, one file that needs no network, and trials.csv.

python -m orchestrator.report RUN [--to DIR]

Reads the run folder alone, so it can be written while the search runs, after a crash, or on another machine.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.planning.plan_text import data_lines
from orchestrator.report.data import ReportData, read_report_data
from orchestrator.report.figures import importance_bars, learning_curves, loss_against, score_against_loss
from orchestrator.report.forecast_check import forecast_check
from orchestrator.report.headline import export_lines, headline, time_line
from orchestrator.report.importance import Importance, importance
from orchestrator.report.plot_style import COLOURS, fragment
from orchestrator.report.scores import score_section
from orchestrator.report.tables import (
    counts_line,
    csv_text,
    is_csv_text,
    ranking_rows,
    settings,
    stopped_rows,
    surroundings,
)
from orchestrator.state.run_dir import RunDir
from orchestrator.storage.locations import address_of, open_run, upload
from search_spaces.schema import Range
from trials.cli import run_command
from trials.errors import EXIT_DONE, RunFolderError
from trials.sources.source import expanded
from trials.system.files import write_text
from trials.system.overwriting import refuse_to_replace

_TEMPLATE = "report.html.j2"
_TITLE = ": report of the search</title>"
"""Text by which a file is recognised as a report."""


@dataclass(frozen=True)
class _Figures:
    """HTML of every figure; None if there is nothing to draw."""

    curves: Markup
    importance: Markup | None
    loss_against: Markup | None
    scores: Markup | None


def write_report(run: RunDir, to: Path | None = None) -> Path:
    """Write trials.csv and report.html to `to` (default: RUN), and return the path of report.html.

    Each file is written in one piece. Raises `RunFolderError` if RUN holds no readable search or the folder can't be
    written to.
    """
    data = read_report_data(run)
    folder = to or run.path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "trials.csv", csv_text(data.records))
        write_text(folder / "report.html", render(data))
    except OSError as error:
        raise RunFolderError(
            f"can't write to {folder}: {error.strerror}. Make room, allow it, or give another folder by --to DIR."
        ) from error
    return folder / "report.html"


def render(data: ReportData) -> str:
    """Return the text of report.html."""
    weighed = importance(data)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chosen, defaults = settings(data)
    return environment.get_template(_TEMPLATE).render(
        data=data,
        headline=headline(data),
        export_lines=export_lines(data),
        time_line=time_line(data),
        counts_line=counts_line(data),
        ranking=ranking_rows(data),
        stopped=stopped_rows(data),
        importance=weighed,
        has_importance=isinstance(weighed, Importance),
        figures=_figures(data, weighed),
        colours={name.replace(" ", "-"): colour for name, colour in COLOURS.items()},
        commands=_commands(data),
        settings=chosen,
        defaults=defaults,
        surroundings=surroundings(data),
        data_lines=data_lines(data.search_json.get("data") or {}),
        scores=score_section(data),
        forecast=forecast_check(data),
    )


def _figures(data: ReportData, weighed: Importance | str) -> _Figures:
    bars = importance_bars(weighed.shares) if isinstance(weighed, Importance) else None
    name = _plotted_hyperparameter(data)
    against = loss_against(data, name) if name else None
    scores = score_against_loss(data)
    return _Figures(
        curves=Markup(fragment(learning_curves(data), "curves", with_library=True)),
        importance=Markup(fragment(bars, "importance", with_library=False)) if bars else None,
        loss_against=Markup(fragment(against, "loss-against", with_library=False)) if against else None,
        scores=Markup(fragment(scores, "scores", with_library=False)) if scores else None,
    )


def _plotted_hyperparameter(data: ReportData) -> str | None:
    """Return the hyperparameter to draw; None if no range is varied, or no trial was evaluated.

    It is the learning rate if that's varied, since it matters most often; else the first range of the space.
    """
    ranges = [name for name, dimension in data.search.recipe.space.items() if isinstance(dimension, Range)]
    if not any(record.points for record in data.trained):
        return None
    return "learning_rate" if "learning_rate" in ranges else next(iter(ranges), None)


def _commands(data: ReportData) -> Mapping[str, str]:
    """Return commands for the user, by what they do."""
    run, export = shlex.quote(address_of(RunDir(data.path))), shlex.quote(str(data.path / "export"))
    commands = {}
    if data.manifest is not None:
        commands["Generate text with the winner"] = f"python -m trials.generate {export} --prompt TEXT"
    else:
        commands["Export the best adapter so far"] = f"python -m orchestrator.export {run}"
    commands["Go on with this search"] = f"python -m orchestrator.search --resume {run}"
    if (data.path / "study.db").is_file():
        url = RunDir(data.path).study_url
        commands["Look into the study"] = f"optuna-dashboard {shlex.quote(url)}"
    commands["Write this report anew"] = f"python -m orchestrator.report {run}"
    return commands


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m orchestrator.report", description="Write report.html and trials.csv of a run folder."
    )
    arguments.add_argument("run", metavar="RUN", help="run folder of a search, running or over")
    arguments.add_argument(
        "--to", type=expanded, metavar="DIR", help="where report.html and trials.csv go (default: RUN)"
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _report(parser().parse_args(argv)))


def _report(arguments: argparse.Namespace) -> int:
    folder = open_run(arguments.run)
    if arguments.to is not None:
        refuse_to_replace(arguments.to / "trials.csv", is_csv_text, "Give another folder by --to.")
        refuse_to_replace(
            arguments.to / "report.html", lambda text: _TITLE in text[:1000], "Give another folder by --to."
        )
    print(f"report: {write_report(folder, arguments.to)}")
    if arguments.to is None:
        upload(folder, "report.html", "trials.csv")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
