"""Command line: how good an adapter or a model is on rows, or which of two is better.

python -m trials.evaluate ADAPTER_OR_MODEL --data SOURCE [--labels | --rouge] [--against-base] [--json OUT]
python -m trials.evaluate --compare A B [--data SOURCE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from trials.cli import run_command, whole_number
from trials.config import DataFormat, TooLong
from trials.errors import DataError, InputError, ModelError
from trials.formats.conversations import LABELLED

if TYPE_CHECKING:
    from trials.evaluation.evaluator import EvalJob
    from trials.evaluation.result import EvalResult, EvalTask

FORMAT: DataFormat = "nli_cot"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(prog="python -m trials.evaluate", description="Judge an adapter or a model.")
    add = arguments.add_argument
    add("model", metavar="ADAPTER_OR_MODEL", nargs="?", help="a folder, or a model's name on the hub")
    add("--data", help="a .jsonl, .json, .csv or .parquet file, or a data set on the hub; [:800] after it is a slice")
    add("--format", choices=get_args(DataFormat), help="how rows become prompts (default: as in the trial, or nli_cot)")
    add("--rows", type=whole_number(2), help="at most so many rows, from the top")
    add("--max-length-tokens", type=whole_number(8), default=2048, help="longer rows are refused")
    add("--too-long", choices=get_args(TooLong), default="fail", help="what to do with longer rows")
    add("--batch-rows", type=whole_number(1), default=16, help="rows at once (default: 16)")
    add("--quantization", choices=("nf4", "none"), help="of the base model (default: as in the trial, or nf4)")
    add("--dtype", choices=("auto", "float32", "bfloat16"), help="of the products (default: as in the trial, or auto)")
    add("--chat-template", help="mistral, zephyr or a Jinja file (default: as in the trial, or the tokenizer's own)")
    scores = arguments.add_mutually_exclusive_group()
    scores.add_argument("--labels", action="store_true", help="generate answers, and judge their labels")
    scores.add_argument("--rouge", action="store_true", help="generate answers, and score them by ROUGE-L")
    add("--max-new-tokens", type=whole_number(1), help="of an answer (default: twice the longest reference)")
    add("--against-base", action="store_true", help="also judge the base, the adapter switched off, and compare")
    add(
        "--compare", nargs=2, metavar=("A", "B"), help="adapters, models, or files that --json wrote; includes --labels"
    )
    add("--json", type=Path, help="write everything, row by row, to this file")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(lambda: _evaluate(parser().parse_args(argv)))


def _evaluate(arguments: argparse.Namespace) -> int:
    _refuse_contradictions(arguments)
    found = _compare(arguments) if arguments.compare else _evaluate_one(arguments)
    if arguments.json:
        from trials.system.files import write_json

        write_json(arguments.json, found)
    return 0


def _evaluate_one(arguments: argparse.Namespace) -> dict[str, Any]:
    from trials.evaluation.comparison import compare_results
    from trials.evaluation.result import as_json
    from trials.evaluation.result_text import comparison_lines, result_lines

    prepared = _prepare(arguments, arguments.model)
    if not arguments.against_base:
        ours = prepared.evaluate()
        _print(result_lines(ours))
        return as_json(ours)
    ours, base = prepared.evaluate_with_base()
    comparison = compare_results(base, ours)
    _print([*result_lines(ours), "", "base model", *result_lines(base), ""])
    _print(comparison_lines(comparison, "base", "adapter"))
    return {**as_json(ours), "base": as_json(base), "against_base": comparison.as_json()}


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from trials.evaluation.comparison import compare_results, refuse_other_rows
    from trials.evaluation.result import EvalResult, as_json
    from trials.evaluation.result_text import comparison_lines, result_lines

    # Both are checked before either is evaluated, which can take hours.
    found = [_read(arguments, path) or _prepare(arguments, path) for path in arguments.compare]
    refuse_other_rows(found[0].rows, found[1].rows)
    a, b = [part if isinstance(part, EvalResult) else part.evaluate() for part in found]
    comparison = compare_results(a, b)
    for name, result in (("A", a), ("B", b)):
        _print([f"{name}: {result.rows.model}", *result_lines(result), ""])
    _print(comparison_lines(comparison, "A", "B"))
    return {"a": as_json(a), "b": as_json(b), "comparison": comparison.as_json()}


def _read(arguments: argparse.Namespace, path: str) -> EvalResult | None:
    from trials.evaluation.result import read_result

    if not Path(path).is_file():
        return None
    result = read_result(Path(path))
    if (arguments.labels or arguments.rouge) and result.answers is None:
        asked = "--labels" if arguments.labels else "--rouge"
        raise InputError(
            f"{asked} compares answers, and {path} has none. Judge {result.rows.model} again with {asked}."
        )
    return result


def _prepare(arguments: argparse.Namespace, path: str) -> EvalJob:
    task = _task(arguments, path)

    from trials.config import DataSettings
    from trials.evaluation.evaluator import LoadOptions, prepare

    settings = DataSettings(
        format=task.format,
        train=task.data,
        eval=task.data,
        eval_rows=arguments.rows,
        max_length_tokens=arguments.max_length_tokens,
        too_long=arguments.too_long,
    )
    choices = LoadOptions(arguments.quantization, arguments.dtype, arguments.chat_template)
    return prepare(path, choices, task, settings)


def _task(arguments: argparse.Namespace, path: str) -> EvalTask:
    from trials.evaluation.result import EvalTask
    from trials.metrics.task_scores import refuse_plain_text
    from trials.records.adapter_dir import trial_config

    trial = trial_config(path)
    data_format: DataFormat = arguments.format or (trial.data.format if trial else FORMAT)
    has_labels = data_format in LABELLED
    if arguments.labels and not has_labels:
        raise InputError(
            f"--labels needs rows with labels, and format {data_format!r} has none. Allowed with --labels: "
            f"{', '.join(LABELLED)}. Text is scored by --rouge."
        )
    if arguments.rouge and has_labels:
        raise InputError(f"--rouge is for text, and format {data_format!r} is judged by its labels. Use --labels.")
    if arguments.rouge:
        refuse_plain_text(data_format)
    asked = arguments.labels or arguments.rouge or (arguments.compare is not None and has_labels)
    return EvalTask(arguments.data, data_format, arguments.batch_rows, asked, arguments.max_new_tokens)


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    from trials.records.adapter_dir import is_adapter

    if (arguments.model is None) == (arguments.compare is None):
        raise InputError("give either ADAPTER_OR_MODEL, which is judged, or --compare A B.")
    if arguments.against_base and arguments.compare:
        raise InputError("--against-base belongs to one adapter. With --compare, give the base as A or B.")
    if arguments.against_base and not is_adapter(arguments.model):
        raise ModelError(
            f"--against-base needs an adapter, and {arguments.model} is none: it has no adapter_config.json."
        )
    models = [path for path in arguments.compare or [arguments.model] if not Path(path).is_file()]
    _refuse_data(arguments, models)
    if arguments.json and not arguments.json.parent.is_dir():
        raise InputError(f"can't write {arguments.json}: there's no folder {arguments.json.parent}. Make it first.")
    if arguments.json:
        from trials.evaluation.result import is_written_by_json
        from trials.system.overwriting import refuse_to_replace

        refuse_to_replace(arguments.json, is_written_by_json, "Give another file by --json.")


def _refuse_data(arguments: argparse.Namespace, models: Sequence[str]) -> None:
    """Refuse models without rows, and rows without a model: files that --json wrote need no rows."""
    if arguments.model is not None and Path(arguments.model).is_file():
        raise InputError(f"{arguments.model} is a file. Give an adapter's or a model's folder, or --compare A B.")
    missing = next((path for path in models if path.endswith(".json")), None)
    if missing is not None:
        raise DataError(f"no file {missing}. Give one that --json wrote, an adapter or a model.")
    if models and arguments.data is None:
        raise InputError(f"{models[0]} can't be judged without rows. Give --data SOURCE.")
    if not models and arguments.data is not None:
        raise InputError(
            f"--data {arguments.data} isn't used: {' and '.join(arguments.compare)} were judged before. Leave it out."
        )


def _print(renderables: Iterable[Any]) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, soft_wrap=True)
    for renderable in renderables:
        console.print(renderable)


if __name__ == "__main__":
    sys.exit(main())
