"""Judges one adapter on TEST, in a process of its own: the same code, rows and base for every rival.

python -m benchmarks.head_to_head.judge JUDGING.json ADAPTER RESULT.json
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.head_to_head.contest import Contest
from search_spaces.schema import Recipe
from trials.cli import run_command
from trials.config import DataSettings, Machine, ModelSettings, Settings
from trials.errors import ModelError
from trials.evaluation.result import EvalResult, EvalTask, as_json, read_result
from trials.system.files import write_json, write_text


class Judging(Settings):
    """Settings of the judge: base model, rows, threads, and rows in one batch."""

    model: ModelSettings
    data: DataSettings
    machine: Machine
    batch_rows: int

    @classmethod
    def of(cls, contest: Contest, recipe: Recipe) -> Judging:
        """Return the judge's settings for a contest."""
        data = contest.judging(recipe.data)
        return cls(model=recipe.model, data=data, machine=recipe.machine, batch_rows=recipe.evaluation.batch_rows)

    def write(self, path: Path) -> None:
        """Write them for the judge's process."""
        write_text(path, self.model_dump_json())


def read_judging(path: Path) -> Judging:
    """Read what `Judging.write` wrote."""
    return Judging.model_validate_json(path.read_text(encoding="utf-8"))


def judge(judging: Judging, adapter: Path) -> EvalResult:
    """Return the losses of an adapter, or of a model, on all rows. Raises `ModelError` if it can't be loaded."""
    from trials.evaluation.evaluator import LoadOptions, prepare
    from trials.system.torch_setup import use_threads

    use_threads(judging.machine)
    model = judging.model
    # What the adapter's own folder says of quantisation, type and template doesn't count.
    options = LoadOptions(model.quantization, model.compute_dtype, model.chat_template)
    task = EvalTask(judging.data.eval, judging.data.format, judging.batch_rows, answers=False)
    return prepare(str(adapter), options, task, judging.data).evaluate()


def judge_apart(judging: Path, adapter: Path, result: Path, environ: Mapping[str, str]) -> EvalResult:
    """Judge in another process, so that this one holds no GPU memory; what was judged before is only read.

    Raises `ModelError` with the process's last words if it fails.
    """
    if not result.is_file():
        command = [sys.executable, "-m", "benchmarks.head_to_head.judge", str(judging), str(adapter), str(result)]
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ModelError(f"{adapter} can't be judged: {(done.stderr or done.stdout).strip()[-500:]}")
    return read_result(result)


def main(argv: Sequence[str]) -> int:
    """Run the judge's process; return the exit code."""
    judging, adapter, result = map(Path, argv)

    def command() -> int:
        write_json(result, as_json(judge(read_judging(judging), adapter)))
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
