"""Finalizes a search: exports and verifies the winner, writes the report, and prints how to use them."""

from __future__ import annotations

import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.monitoring.search_log import search_log
from orchestrator.state.clock import SteadyClock
from orchestrator.state.run_dir import RunDir
from orchestrator.state.timing import EXPORTED, TRAINING_OVER, record_moment, timed
from orchestrator.storage.locations import address_of
from trials.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_TO_EXPORT,
    RunFolderError,
    TuningError,
    first_line,
)
from trials.system.disk_full import disk_full_in

if TYPE_CHECKING:
    from orchestrator.export.exporter import Exported

_MOVING_SECONDS = 3.0
"""Seconds before the deadline at which an export that is not verified yet is put in place."""


def finalize(folder: RunDir, clock: SteadyClock, *, interrupted: bool) -> int:
    """Export the best trial, write the report, and print where they are; return the exit code.

    An error in one of the two does not prevent the other.
    """
    print("exporting the best trial, and loading it again in a fresh process to verify it", flush=True)
    record_moment(folder, TRAINING_OVER, clock())
    exported = _exported(folder, clock, interrupted=interrupted)
    if not isinstance(exported, Exception):
        _tell_study(folder, exported.manifest["trial"])
    report = _reported(folder)
    if isinstance(exported, Exception):
        sys.stderr.write(f"nothing exported: {_in_words(exported)}\n")
    else:
        for line in exported.lines():
            sys.stderr.write(f"{line}\n")
        manifest = exported.manifest
        print(
            f"best: trial {manifest['trial']}, eval loss {manifest['eval_loss']:.4f} "
            f"(base {manifest['base_eval_loss']:.4f}), verified in a fresh process"
        )
        print(f"adapter: {exported.path}")
    if isinstance(report, Exception):
        sys.stderr.write(f"warning: no report: {_in_words(report)}\n")
    else:
        print(f"report: {report}")
    if not isinstance(exported, Exception):
        command = [_python(), "-m", "trials.generate", str(exported.path), "--prompt", _example_prompt(folder)]
        print(f"try it: {shlex.join(command)}")
    if interrupted:
        print(f"go on: {shlex.join([_python(), '-m', 'orchestrator.search', '--resume', address_of(folder)])}")
    return _code(exported, interrupted=interrupted)


def _exported(folder: RunDir, clock: SteadyClock, *, interrupted: bool) -> Exported | Exception:
    """Return the export, or the error that prevented it."""
    try:
        from orchestrator.export.exporter import export_best

        left = folder.read_search().deadline.seconds_left(clock()) - _MOVING_SECONDS
        with disk_full_in(folder.path), timed(folder, "export"):
            # After an interrupt, or after the deadline, there is no time limit on the verification.
            exported = export_best(folder, due_seconds=None if interrupted or left < 0 else left)
        record_moment(folder, EXPORTED, clock())
        return exported
    except TuningError as error:
        return error
    except Exception as error:
        log_traceback(folder, error)
        return error


def _tell_study(folder: RunDir, trial_id: str) -> None:
    """Let study.db say which trial was exported; where it can't be written, it stays as it is."""
    try:
        from orchestrator.controller.study import record_export

        record_export(folder, folder.read_search().recipe, trial_id)
    except Exception as error:
        log_traceback(folder, error)
        sys.stderr.write(f"warning: study.db doesn't say which trial was exported: {_in_words(error)}\n")


def _reported(folder: RunDir) -> Path | Exception:
    """Return the path of the report, or the error that prevented it."""
    try:
        from orchestrator.report.render import write_report  # inside, as it needs plotly

        with timed(folder, "report"):
            return write_report(folder)
    except TuningError as error:
        return error
    except Exception as error:
        log_traceback(folder, error)
        return error


def log_traceback(folder: RunDir, error: Exception) -> None:
    """Append an error's traceback to RUN/logs/search.log; if that cannot be written, it is left out."""
    search_log(folder).append("".join(traceback.format_exception(error)))


def _in_words(error: Exception) -> str:
    """Return an error as one line; an unexpected one with its type and the file that has its traceback."""
    if isinstance(error, TuningError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}. The traceback is in logs/search.log of the run folder."


def _code(exported: Exported | Exception, *, interrupted: bool) -> int:
    if interrupted:
        return EXIT_INTERRUPTED
    if not isinstance(exported, Exception):
        return EXIT_DONE
    code = exported.exit_code if isinstance(exported, TuningError) else TuningError.exit_code
    # A search has run, whereas exit code 2 (EXIT_BAD_INPUT) would mean that nothing was started.
    return EXIT_NOTHING_TO_EXPORT if code == EXIT_BAD_INPUT else code


def _example_prompt(folder: RunDir) -> str:
    try:
        samples = folder.read_json("samples.json")
        return str(samples[0]["prompt"]) if samples else "TEXT"
    except (RunFolderError, OSError, LookupError, TypeError):
        return "TEXT"


def _python() -> str:
    """Return a command for Python: its path relative to the current folder if it is below, else `python`."""
    here, executable = Path.cwd(), Path(sys.executable)
    return str(executable.relative_to(here)) if executable.is_relative_to(here) else "python"
