"""The end of a search's command: the winner exported and proved, the report, and what to do with them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from orchestrator.clock import SteadyClock
from orchestrator.run_folder import RunFolder
from orchestrator.run_places import place_of
from orchestrator.timing import EXPORTED, TRAINING_OVER, note_moment, timed
from trials.disk import disk_full_in
from trials.errors import EXIT_DONE, EXIT_INTERRUPTED, RunFolderError, TuningError

_MOVING_SECONDS = 3.0
"""Before the deadline an export that isn't proved yet is put in its place."""


def finish(folder: RunFolder, clock: SteadyClock, *, interrupted: bool) -> int:
    """Exports and reports whatever there is, and says where it is."""
    from orchestrator.export import export_best
    from orchestrator.report import write_report

    code, problem = EXIT_INTERRUPTED if interrupted else EXIT_DONE, None
    print("exporting the best trial, and loading it again in a fresh process to verify it", flush=True)
    note_moment(folder, TRAINING_OVER, clock())
    left = folder.read_search().deadline.seconds_left(clock()) - _MOVING_SECONDS
    try:
        with disk_full_in(folder.path), timed(folder, "export"):
            # Who stopped the search, or resumed it after its end, waits for the proof.
            exported = export_best(folder, due_seconds=None if interrupted or left < 0 else left)
        note_moment(folder, EXPORTED, clock())
    except TuningError as error:
        code, problem = (EXIT_INTERRUPTED if interrupted else error.exit_code), error
    try:
        with timed(folder, "report"):
            said = f"report: {write_report(folder)}"
    except RunFolderError as error:
        said = f"no report: {error}"
    if problem is None:
        manifest = exported.manifest
        print(
            f"best: trial {manifest['trial']}, eval loss {manifest['eval_loss']:.4f} "
            f"(base {manifest['base_eval_loss']:.4f}), verified in a fresh process"
        )
        print(f"adapter: {exported.path}")
    else:
        sys.stderr.write(f"nothing exported: {problem}\n")
    print(said)
    if problem is None:
        command = [_python(), "-m", "trials.generate", str(exported.path), "--prompt", _example_prompt(folder)]
        print(f"try it: {shlex.join(command)}")
    if interrupted:
        print(f"go on: {shlex.join([_python(), '-m', 'orchestrator.search', '--resume', place_of(folder)])}")
    return code


def _example_prompt(folder: RunFolder) -> str:
    samples = folder.read_json("samples.json")
    return samples[0]["prompt"] if samples else "TEXT"


def _python() -> str:
    """How this Python is called from here, as short as it gets."""
    here, executable = Path.cwd(), Path(sys.executable)
    return str(executable.relative_to(here)) if executable.is_relative_to(here) else "python"
