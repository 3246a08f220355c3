"""Command line: what an adapter or a model answers, to one prompt or in a conversation.

python -m trials.generate ADAPTER_OR_MODEL --prompt TEXT [--sample]
python -m trials.generate ADAPTER_OR_MODEL --chat [--system TEXT]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trials.cli import number_within, run_command, whole_number
from trials.errors import InputError
from trials.formats.texts import refuse_unreadable

if TYPE_CHECKING:
    from trials.evaluation.chat import Chat
    from trials.evaluation.generation import Sampling

TEMPERATURE, TOP_K, TOP_P = 0.7, 50, 0.95
"""Defaults of sampling, as in the guides."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(prog="python -m trials.generate", description="Ask an adapter or a model.")
    add = arguments.add_argument
    add("model", metavar="ADAPTER_OR_MODEL", help="a folder, or a model's name on the hub")
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what the user says; - reads it from standard input")
    what.add_argument("--chat", action="store_true", help="a conversation; a line of standard input is a turn")
    add("--system", help="what the model is told before the user says anything")
    add("--max-new-tokens", type=whole_number(1), default=256, help="of one answer (default: 256)")
    add("--sample", action="store_true", help=f"draw from the likely tokens; any of these three does too: {_DEFAULTS}")
    add("--temperature", type=number_within(0.0, 100.0), help="0 is greedy: always the likeliest (default)")
    add("--top-k", type=whole_number(0), help="only so many of the likeliest tokens; 0 is all")
    add("--top-p", type=number_within(0.01, 1.0), help="only the likeliest tokens, up to this probability together")
    add("--seed", type=whole_number(0), default=0)
    size = arguments.add_mutually_exclusive_group()
    size.add_argument("--quantization", choices=("nf4", "none"), help="nf4: 4-bit (default: as in the trial, or nf4)")
    size.add_argument("--full", action="store_const", const="none", dest="quantization", help="the same as none")
    add("--chat-template", help="mistral, zephyr or a Jinja file (default: as in the trial, or the tokenizer's own)")
    return arguments


_DEFAULTS = f"--temperature {TEMPERATURE} --top-k {TOP_K} --top-p {TOP_P}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(lambda: _generate(parser().parse_args(argv)))


def _generate(arguments: argparse.Namespace) -> int:
    if arguments.sample and arguments.temperature == 0.0:
        raise InputError("--sample draws tokens, and --temperature 0 never does. Give one of them.")
    prompt = None
    if not arguments.chat:
        prompt = _prompt(arguments.prompt)
    for name, text in (("the prompt", prompt), ("--system", arguments.system)):
        refuse_unreadable(text or "", name)
    chat = _load(arguments, prompt)
    if prompt is not None:
        print(chat.ask(prompt))
    else:
        _converse(chat)
    return 0


def _prompt(given: str) -> str:
    try:
        prompt = sys.stdin.read() if given == "-" else given
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not {error.encoding} text ({error.reason}). Give it in UTF-8.") from error
    if not prompt.strip():
        raise InputError("the prompt is empty. Give --prompt some text.")
    return prompt


def _load(arguments: argparse.Namespace, prompt: str | None) -> Chat:
    from transformers import set_seed

    from trials.evaluation.chat import Chat, conversation_ids, told
    from trials.evaluation.evaluator import LoadOptions, check_model, load_model
    from trials.formats.conversations import USER, Message

    choices = LoadOptions(quantization=arguments.quantization, chat_template=arguments.chat_template)
    tokenizer, known = check_model(arguments.model, choices)
    if prompt is not None:  # a prompt that can't be asked is refused before the weights are loaded
        conversation_ids((*told(arguments.system), Message(USER, prompt.strip())), tokenizer, known)
    judged = load_model(arguments.model, choices)
    set_seed(arguments.seed)
    return Chat(judged.model, judged.tokenizer, _sampling(arguments), arguments.system, known)


def _sampling(arguments: argparse.Namespace) -> Sampling:
    from trials.evaluation.generation import Sampling

    temperature, top_k, top_p = arguments.temperature, arguments.top_k, arguments.top_p
    if not arguments.sample and temperature is top_k is top_p is None:
        return Sampling(arguments.max_new_tokens)
    return Sampling(
        arguments.max_new_tokens,
        temperature=TEMPERATURE if temperature is None else temperature,
        top_k=TOP_K if top_k is None else top_k,
        top_p=TOP_P if top_p is None else top_p,
    )


def _converse(chat: Chat) -> None:
    """Answer line by line until the end of input or /exit."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        import readline  # noqa: F401  # lets `input` edit lines and remember them

        print("Ctrl-D or /exit ends the conversation.")
    while True:
        try:
            line = input("> " if on_terminal else "")
        except EOFError:
            break
        except UnicodeDecodeError as error:
            raise InputError(
                f"standard input is not {error.encoding} text ({error.reason}). Give it in UTF-8."
            ) from error
        if line.strip() == "/exit":
            break
        if line.strip():
            chat.ask(line, printed=True)


if __name__ == "__main__":
    sys.exit(main())
