"""Command line: how good an adapter or a model is on the rows of a file.

python -m trials.evaluate ADAPTER_OR_MODEL --data FILE [--labels] [--against-base] [--json OUT]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trials.command_line import run, whole_number
from trials.errors import InputError
from trials.formats import FORMATS


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    arguments = argparse.ArgumentParser(prog="python -m trials.evaluate", description="Judge an adapter or a model.")
    arguments.add_argument("model", metavar="ADAPTER_OR_MODEL", help="a folder, or a model's name on the hub")
    arguments.add_argument("--data", type=Path, required=True, help="JSON Lines file")
    arguments.add_argument(
        "--format", choices=sorted(FORMATS), default="nli_cot", help="how rows become prompts (default: nli_cot)"
    )
    arguments.add_argument("--rows", type=whole_number(1), help="at most so many rows, from the top")
    arguments.add_argument("--max-length-tokens", type=whole_number(8), default=2048, help="longer rows are refused")
    arguments.add_argument("--too-long", choices=("fail", "drop"), default="fail", help="what to do with longer rows")
    arguments.add_argument(
        "--batch-rows", type=whole_number(1), default=16, help="rows at once; doesn't change the result"
    )
    arguments.add_argument("--quantization", choices=("nf4", "none"), default="nf4", help="of the base model")
    arguments.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the products")
    arguments.add_argument("--labels", action="store_true", help="also generate, and count right labels")
    arguments.add_argument("--against-base", action="store_true", help="also judge the base, the adapter switched off")
    arguments.add_argument("--json", type=Path, help="write everything, row losses included, to this file")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run(lambda: _evaluate(parser().parse_args(argv)))


def _evaluate(arguments: argparse.Namespace) -> int:
    from trials.files import write_json
    from trials.rows import read_examples

    examples = read_examples(arguments.data, arguments.format, arguments.rows)
    if arguments.against_base and len(examples) < 2:
        raise InputError(f"--against-base needs at least two rows, and of {arguments.data} one is used. Give more.")
    found = _judge(arguments, examples)
    print(f"eval loss {found['eval_loss']:.4f} nats per token, {len(found['row_losses']['loss_sums'])} rows")
    if "base" in found:
        base = found["base"]
        print(f"base {base['base_eval_loss']:.4f}, better by {base['difference']:.4f} ± {base['standard_error']:.4f}")
    for who in ("labels", "base_labels"):
        if who in found:
            counts = found[who]
            print(f"{who.replace('_', ' ')}: {counts['accuracy']:.1%} right, {counts['unparsed']:.1%} not parsed")
    if arguments.json:
        write_json(arguments.json, found)
    return 0


def _judge(arguments: argparse.Namespace, examples: list[Any]) -> dict[str, Any]:
    from trials import judging
    from trials.config import DataSettings
    from trials.data import tokenize_split

    judged = judging.load_judged(arguments.model, arguments.quantization, arguments.dtype)
    name = str(arguments.data)
    settings = DataSettings(
        format=arguments.format,
        train=name,
        eval=name,
        max_length_tokens=arguments.max_length_tokens,
        too_long=arguments.too_long,
    )
    split = tokenize_split(examples, name, settings, judged.tokenizer)
    losses = judging.losses(judged, split, arguments.batch_rows)
    found: dict[str, Any] = {"eval_loss": losses.mean, "row_losses": asdict(losses)}
    with_base = arguments.against_base and judged.is_adapter
    if with_base:
        base_losses = judging.losses(judged, split, arguments.batch_rows, base=True)
        found["base"] = judging.against_base(losses, base_losses)
    if arguments.labels:
        found["labels"] = judging.label_counts(judging.answers(judged, split), split)
        if with_base:
            found["base_labels"] = judging.label_counts(judging.answers(judged, split, base=True), split)
    return found


if __name__ == "__main__":
    sys.exit(main())
