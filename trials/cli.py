"""Common parts of the command lines: one clear error and its exit code, quiet libraries."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable

from trials.console.terminal import drain_console, take_over
from trials.console.unexpected import explain_background_errors, explained, keep_tracebacks_in
from trials.console.utf8 import use_utf8
from trials.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, TuningError


def run_command(command: Callable[[], int]) -> int:
    """Run a command; an error becomes one message on stderr and an exit code.

    A `TuningError` has its own exit code. Any other error's traceback is kept in a file, which the message names.
    """
    if take_over():
        explain_background_errors()
    keep_tracebacks_in(None)
    quiet_libraries()
    try:
        use_utf8()
        return command()
    except TuningError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun, only one of a command's processes prints it
            sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except Exception as error:
        sys.stderr.write(f"error: {explained(error)}\n")
        return EXIT_UNEXPECTED
    finally:
        drain_console()


def whole_number(least: int) -> Callable[[str], int]:
    """Return a parser for argparse: a whole number that isn't below `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed. Give a whole number of at least {least}.")
        return int(text)

    return parse


def number_within(low: float, high: float) -> Callable[[str], float]:
    """Return a parser for argparse: a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed. Give a number from {low:g} to {high:g}.")
        return number

    return parse


def quiet_libraries() -> None:
    """Show our own log lines from INFO on, the libraries' only from ERROR on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # it logs errors that it also raises, and we print those
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    for ours in ("trials", "search_spaces", "orchestrator"):
        logging.getLogger(ours).setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
