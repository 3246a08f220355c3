"""Command line that finds missing or damaged parts of a run folder, hashes included, and repairs them if asked to.

python -m orchestrator.check RUN [--repair] [--json]

Exit codes: 0 all is whole or repaired; 2 no run folder, or --repair while a search runs in it; 3 damage is left.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from orchestrator.integrity.problems import Problem, problems
from orchestrator.state.run_dir import RunDir
from orchestrator.storage.locations import address_of, exclusive_access, open_run, upload
from orchestrator.storage.run_storage import storage_of
from trials.cli import run_command
from trials.errors import EXIT_DONE

EXIT_DAMAGED = 3


@dataclass(frozen=True)
class Checked:
    """A problem, and what was done about it, in words; None: nothing."""

    problem: Problem
    done: str | None

    def line(self) -> str:
        """Return one line of text for the user."""
        found = f"{self.problem.where}: {self.problem.what}"
        if self.done is not None:
            return f"{found}: {self.done}"
        return found if self.problem.mend is None else f"{found} (--repair mends it)"


def check(folder: RunDir, *, repair: bool = False) -> list[Checked]:
    """Return all problems; with `repair`, repair what can be repaired. Nothing is deleted."""
    found: list[Checked] = []
    seen: set[tuple[str, str]] = set()
    weights = storage_of(folder.path).has_weights
    # The folder is read again after every repair, which may fix more than one problem, or reveal hidden ones.
    while True:
        fresh = [each for each in problems(folder, weights=weights) if (each.where, each.what) not in seen]
        if not fresh:
            return found
        for problem in fresh:
            seen.add((problem.where, problem.what))
            done = problem.mend() if repair and problem.mend is not None else None
            found.append(Checked(problem, done))
            if done is not None:
                break


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m orchestrator.check", description="Say what of a run folder is there, and what is damaged."
    )
    arguments.add_argument("run", metavar="RUN", help="run folder of a search, running or over")
    arguments.add_argument(
        "--repair", action="store_true", help="set aside what can't be used, and make study.db anew; deletes nothing"
    )
    arguments.add_argument("--json", action="store_true", help="say it as JSON")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(lambda: _check(parser().parse_args(argv)))


def _check(arguments: argparse.Namespace) -> int:
    folder = open_run(arguments.run)
    with exclusive_access(folder) if arguments.repair else nullcontext():
        found = check(folder, repair=arguments.repair)
        if arguments.repair:
            upload(folder)
    left = [each for each in found if each.done is None]
    trials = folder.read_trials()
    if arguments.json:
        rows = [{"where": each.problem.where, "what": each.problem.what, "done": each.done} for each in found]
        said = {"run": address_of(folder), "trials": len(trials.records), "whole": not left, "problems": rows}
        print(json.dumps(said, indent=2))
    else:
        print(f"{address_of(folder)}: {len(trials.records)} trials, the base model included")
        print("\n".join(each.line() for each in found) or "all is whole")
    return EXIT_DAMAGED if left else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
