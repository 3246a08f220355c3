"""The project's errors, all in one tree.

    TuningError
    +-- InputError            the user's input can't be used; the command ends with exit code 2, nothing was started
    |   +-- RecipeError       a recipe, an environment variable or a --set
    |   +-- DataError         a data file or its rows
    |   +-- ModelError        a base model, tokenizer or adapter folder
    |   +-- RunFolderError    a run folder that can't be used as asked
    +-- SearchBroken          Ray gave up; the result so far is exported, the search can be resumed; exit code 130
    |   +-- StoreFailed       the run folder's object store can't be used; exit code 130
    |       +-- StoreDamaged  its content is no search's; exit code 2, as nothing is begun with it
    +-- DiskFull              a disk is full; its content is whole, and the search can be resumed; exit code 130
    +-- PeerError             a trial failed on another of the processes that train it together
    +-- NothingToExport       the search ran, but no adapter is worth exporting; exit code 3
    +-- ExportNotVerified     the export, loaded again, isn't what the trial measured; exit code 3

Every message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_UNEXPECTED = 1
"""An error that no code raised on purpose; its traceback is in a file."""
EXIT_BAD_INPUT = 2
EXIT_NOTHING_TO_EXPORT = 3
EXIT_GAVE_UP = 4
"""A search gave up before its time: its result so far is exported, and it can be resumed."""
EXIT_INTERRUPTED = 130


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, short enough for a sentence of ours."""
    return str(error).strip().split("\n")[0].rstrip(".")


class TuningError(Exception):
    """Base of all errors that this project raises on purpose."""

    exit_code = 1


class InputError(TuningError):
    """The user's input can't be used; raised before any model is loaded."""

    exit_code = EXIT_BAD_INPUT


class RecipeError(InputError):
    """A recipe, an environment variable or a --set is wrong."""


class DataError(InputError):
    """A data file is missing, or some of its rows can't be used."""


class ModelError(InputError):
    """A base model, tokenizer or adapter folder can't be used."""


class RunFolderError(InputError):
    """A run folder can't be used as asked."""


class SearchBroken(TuningError):
    """Ray gave up under a search. Its run folder is whole, and the search can be resumed."""

    exit_code = EXIT_INTERRUPTED


class StoreFailed(SearchBroken):
    """An object store can't be used. What was put there is whole, and the search can be resumed."""


class StoreDamaged(StoreFailed):
    """An object store holds content that no search has put there: names that lead elsewhere, other contents."""

    exit_code = EXIT_BAD_INPUT


class DiskFull(TuningError):
    """A disk is full, or can't be written to any more. No trial is to blame, and the content of the disk is whole."""

    exit_code = EXIT_INTERRUPTED


class PeerError(TuningError):
    """A trial failed on another of the processes that train it together, which says why."""


class NothingToExport(TuningError):
    """No trial beats the base model."""

    exit_code = EXIT_NOTHING_TO_EXPORT


class ExportNotVerified(TuningError):
    """The exported adapter, loaded again in a fresh process, doesn't give the trial's figure."""

    exit_code = EXIT_NOTHING_TO_EXPORT
