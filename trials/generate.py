"""Command line: what an adapter or a model answers.

python -m trials.generate ADAPTER_OR_MODEL --prompt TEXT [--temperature 0.7]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trials.command_line import number_within, run, whole_number
from trials.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    arguments = argparse.ArgumentParser(prog="python -m trials.generate", description="Ask an adapter or a model.")
    arguments.add_argument("model", metavar="ADAPTER_OR_MODEL", help="a folder, or a model's name on the hub")
    arguments.add_argument("--prompt", required=True, help="what the user says; - reads it from standard input")
    arguments.add_argument("--max-new-tokens", type=whole_number(1), default=256)
    arguments.add_argument("--temperature", type=number_within(0.0, 100.0), default=0.0, help="0 is greedy (default)")
    arguments.add_argument("--top-k", type=whole_number(0), default=50)
    arguments.add_argument("--top-p", type=number_within(0.01, 1.0), default=0.95)
    arguments.add_argument("--seed", type=whole_number(0), default=0)
    arguments.add_argument("--quantization", choices=("nf4", "none"), default="nf4", help="of the base model")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run(lambda: _generate(parser().parse_args(argv)))


def _generate(arguments: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not prompt.strip():
        raise InputError("the prompt is empty. Give --prompt some text.")

    from transformers import set_seed

    from trials.generation import Sampling, generate
    from trials.judging import load_judged

    judged = load_judged(arguments.model, arguments.quantization)
    set_seed(arguments.seed)
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_k, arguments.top_p)
    print(generate(judged.model, judged.tokenizer, [prompt], sampling)[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
