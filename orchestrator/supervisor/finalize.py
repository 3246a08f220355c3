"""The end of a search's command: the winner exported and proved, the report, and what to do with them."""

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
"""Before the deadline an export that isn't proved yet is put in its place."""


def finalize(folder: RunDir, clock: SteadyClock, *, interrupted: bool) -> int:
    """Exports and reports whatever there is, and says where it is. Neither costs the other."""
    print("exporting the best trial, and loading it again in a fresh process to verify it", flush=True)
    record_moment(folder, TRAINING_OVER, clock())
    exported = _exported(folder, clock, interrupted=interrupted)
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
    """The export, or why there is none."""
    try:
        from orchestrator.export.exporter import export_best

        left = folder.read_search().deadline.seconds_left(clock()) - _MOVING_SECONDS
        with disk_full_in(folder.path), timed(folder, "export"):
            # Who stopped the search, or resumed it after its end, waits for the proof.
            exported = export_best(folder, due_seconds=None if interrupted or left < 0 else left)
        record_moment(folder, EXPORTED, clock())
        return exported
    except TuningError as error:
        return error
    except Exception as error:
        log_traceback(folder, error)
        return error


def _reported(folder: RunDir) -> Path | Exception:
    """Where the report is, or why there is none."""
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
    """Adds an error's traceback to RUN/logs/search.log; where that can't be written, it's left out."""
    search_log(folder).append("".join(traceback.format_exception(error)))


def _in_words(error: Exception) -> str:
    """An error as one line; one that nobody expected with its kind, and where its traceback is."""
    if isinstance(error, TuningError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}. The traceback is in logs/search.log of the run folder."


def _code(exported: Exported | Exception, *, interrupted: bool) -> int:
    if interrupted:
        return EXIT_INTERRUPTED
    if not isinstance(exported, Exception):
        return EXIT_DONE
    code = exported.exit_code if isinstance(exported, TuningError) else TuningError.exit_code
    # A search has been: 2 would say that nothing was started.
    return EXIT_NOTHING_TO_EXPORT if code == EXIT_BAD_INPUT else code


def _example_prompt(folder: RunDir) -> str:
    try:
        samples = folder.read_json("samples.json")
        return str(samples[0]["prompt"]) if samples else "TEXT"
    except (RunFolderError, OSError, LookupError, TypeError):
        return "TEXT"


def _python() -> str:
    """How this Python is called from here, as short as it gets."""
    here, executable = Path.cwd(), Path(sys.executable)
    return str(executable.relative_to(here)) if executable.is_relative_to(here) else "python"
