"""Runs every rival once, in a folder of its own, and judges what it leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.head_to_head.contest import Checked, Contest, usual, usual_values
from benchmarks.head_to_head.judge import Judging, judge_apart
from benchmarks.head_to_head.outcomes import Outcome, left_by, read_outcome
from benchmarks.head_to_head.repeated import length_setting, measured_speed, tokens_that_fit
from benchmarks.head_to_head.rivals import LABELS, Rival, search_command, single_command, stock_command
from benchmarks.head_to_head.stock.trial import Fit, Request
from benchmarks.head_to_head.timed_run import run_timed
from search_spaces.durations import format_duration
from trials.config import LENGTHS
from trials.errors import InputError
from trials.metrics.row_losses import RowLosses
from trials.records.trial_dir import read_trial
from trials.system.files import make_folder, write_json

_GRACE_SECONDS = 60.0
"""After the deadline a search may still write its report; its adapter is late then if it wasn't there."""


@dataclass(frozen=True)
class Matches:
    """All runs of a contest; `environ` is that of every command, `out` the output folder."""

    contest: Contest
    known: Checked
    environ: Mapping[str, str]
    out: Path

    def outcome(self, rival: Rival, budget_seconds: float, seed: int) -> Outcome:
        """Run a rival, or return what is known of it from an earlier run."""
        folder = self._folder(rival, budget_seconds, seed)
        known = read_outcome(folder / "result.json")
        what = f"{LABELS[rival]}, {format_duration(budget_seconds)}, seed {seed}"
        if known is not None:
            print(f"{what}: run before", flush=True)
            return known
        if folder.exists():
            shutil.rmtree(folder)  # it was interrupted
        self._warm_up()
        print(f"{what} ...", flush=True)
        command = self._command(rival, budget_seconds, seed, folder / "run")
        make_folder(folder)
        outcome = self._run(rival, budget_seconds, seed, command, folder)
        outcome.write(folder / "result.json")
        ended = "no adapter" if outcome.adapter is None else f"adapter after {outcome.ready_seconds:.0f} s"
        print(f"  {outcome.seconds:.0f} s, {outcome.trials} trials, {ended}", flush=True)
        return outcome

    def judged(self, outcomes: Sequence[Outcome]) -> dict[tuple[float, int, Rival], RowLosses]:
        """Return the losses of all adapters on TEST."""
        judging = self.out / "judging.json"
        Judging.of(self.contest, self.known.recipe).write(judging)
        found = {}
        for outcome in outcomes:
            if outcome.adapter is not None:
                folder = self._folder(outcome.rival, outcome.budget_seconds, outcome.seed)
                result = judge_apart(judging, folder / outcome.adapter, folder / "judged.json", self.environ)
                found[outcome.budget_seconds, outcome.seed, outcome.rival] = result.losses
        return found

    def _warm_up(self) -> None:
        """Train one step, once, so that no rival pays for what all find in caches: kernels, the base in 4 bits, files.

        Raises `InputError` if that fails, as then no rival could run.
        """
        folder, recipe = self.out / "warm-up", self.known.recipe
        if (folder / "adapter").exists():
            return
        if folder.exists():
            shutil.rmtree(folder)
        print("warm-up, which doesn't count ...", flush=True)
        one_step = {**dict.fromkeys(LENGTHS), "rows_seen": usual(recipe).effective_batch}
        command = single_command(self.contest, {**usual_values(recipe), **one_step}, 0, folder)
        self._run_uncounted(command, self.out / "warm-up.txt", "a trial of one step fails")

    def _run_uncounted(self, command: Sequence[str], log: Path, failure: str) -> None:
        """Run a command outside of any wall clock. Raises `InputError` that begins with `failure`, if it fails."""
        with log.open("wb") as output:
            done = subprocess.run(command, env=dict(self.environ), stdout=output, stderr=output, check=False)
        if done.returncode != 0:
            raise InputError(f"{failure}; {log} says why.")

    def _folder(self, rival: Rival, budget_seconds: float, seed: int) -> Path:
        return self.out / f"{budget_seconds:g}s-seed{seed}" / rival.value

    def _command(self, rival: Rival, budget_seconds: float, seed: int, run: Path) -> list[str]:
        if rival is Rival.RECIPE:
            return single_command(self.contest, usual_values(self.known.recipe), seed, run)
        if rival is Rival.REPEATED:
            return single_command(self.contest, self._repeated_values(budget_seconds, seed), seed, run)
        if rival is Rival.STOCK:
            return stock_command(self._stock_request(), budget_seconds, seed, run)
        return search_command(self.contest, rival, budget_seconds, seed, run)

    def _repeated_values(self, budget_seconds: float, seed: int) -> dict[str, object]:
        """Return the recipe's values and the length that fits, by the speed of the recipe as written.

        That is run first if it wasn't. Raises `InputError` if it came to no evaluation within the budget.
        """
        folder = self._folder(Rival.RECIPE, budget_seconds, seed)
        measured = read_outcome(folder / "result.json") or self.outcome(Rival.RECIPE, budget_seconds, seed)
        record = read_trial(folder / "run")
        speed = measured_speed(record, measured.seconds, self.known.full_tokens)
        if speed is None:
            raise InputError(
                f"{format_duration(budget_seconds)} end before the first evaluation of the recipe as written, so "
                "there is nothing to compare. Give longer --budgets."
            )
        recipe = self.known.recipe
        tokens = tokens_that_fit(speed, budget_seconds, self.known.full_tokens, recipe.evaluation)
        print(f"  {tokens / self.known.full_tokens:.2f} times the recipe's length fit", flush=True)
        return {**usual_values(recipe), **length_setting(usual(recipe), tokens / self.known.full_tokens)}

    def _stock_request(self) -> Path:
        """Return the stock search's request on disk, with what fits this machine, found out once."""
        path = self.out / "stock" / "request.json"
        if not path.is_file():
            recipe = self.known.recipe.model_dump(mode="json")
            make_folder(path.parent)
            write_json(path.parent / "recipe.json", recipe)
            limit = self.contest.gpu_memory_gib
            arguments = [str(path.parent / "recipe.json"), "none" if limit is None else str(limit), str(path.parent)]
            command = [sys.executable, "-m", "benchmarks.head_to_head.stock.fit", *arguments]
            self._run_uncounted(command, path.parent / "log.txt", "what of a stock trial fits can't be found out")
            fit = Fit(**json.loads((path.parent / "fit.json").read_text(encoding="utf-8")))
            Request(recipe, fit).write(path)
        return path

    def _run(self, rival: Rival, budget_seconds: float, seed: int, command: Sequence[str], folder: Path) -> Outcome:
        limit = budget_seconds if rival.is_single else budget_seconds + _GRACE_SECONDS
        run = folder / "run"
        timed = run_timed(command, self.environ, run, folder / "log.txt", limit, at_once=rival.is_single)
        left = left_by(rival, run)
        return Outcome(
            rival=rival,
            budget_seconds=budget_seconds,
            seed=seed,
            command=tuple(command),
            seconds=timed.seconds,
            ready_seconds=None if left.ready is None else left.ready - timed.started,
            exit_code=timed.exit_code,
            was_cut_off=timed.was_cut_off,
            adapter=None if left.adapter is None else str(left.adapter.relative_to(folder)),
            trials=left.trials,
            tokens=left.tokens,
            winner_share=None if left.winner_tokens is None else left.winner_tokens / self.known.full_tokens,
            evaluations=timed.evaluations,
        )
