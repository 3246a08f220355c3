"""Reading of files that a crash, a disk or a person may have damaged. Needs neither torch nor Ray.

A missing file is None. A file that exists and cannot be used raises `DamagedFile`, and nothing else. This covers a
folder, a pipe or a link to itself in its place, bytes that are no UTF-8, and values of another type. A type may have a
property `flaw`: it says why a value can't be used although its parts have the right types.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from trials.errors import RunFolderError, first_line

MOST_BYTES = 2**30
"""Size in bytes above which a file can't be this project's: the losses of a million rows take 30 MB."""

T = TypeVar("T")


class DamagedFile(RunFolderError):
    """A file of a run folder exists and can't be used; `reason` says why, without the file's name."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} can't be read: {reason}. Restore it, or remove it.")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Lines(Generic[T]):
    """Values of a JSON Lines file, and a text for each line that could not be read."""

    values: tuple[T, ...]
    damage: tuple[str, ...] = ()


def read_bytes(path: Path) -> bytes | None:
    """Return a file's content, or None if there is no file. Raises `DamagedFile`."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DamagedFile(path, _in_its_place(found.st_mode))
        if found.st_size > MOST_BYTES:
            raise DamagedFile(path, f"it has {found.st_size:,} bytes, where {MOST_BYTES:,} are the most")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFile(path, (error.strerror or str(error)).lower()) from error


def read_value(path: Path) -> Any | None:
    """Return a file's JSON value, or None if there is no file.

    NaN, infinity and half a surrogate pair are no JSON. Raises `DamagedFile`.
    """
    content = read_bytes(path)
    return None if content is None else _value(path, content)


def read_as(path: Path, shape: TypeAdapter[T], *, strict: bool = True) -> T | None:
    """Return a JSON file as a value of type `shape`, or None if there is no file.

    With `strict`, types are not converted: a string is no number. Raises `DamagedFile`.
    """
    content = read_bytes(path)
    if content is None:
        return None
    _value(path, content)  # a check: pydantic alone passes NaN and 1e999, but only it makes dates and tuples
    try:
        value = shape.validate_json(content, strict=strict)
    except ValidationError as error:
        raise DamagedFile(path, in_words(error)) from error
    if (flaw := getattr(value, "flaw", None)) is not None:
        raise DamagedFile(path, flaw)
    return value


def read_lines_as(path: Path, shape: TypeAdapter[T]) -> Lines[T]:
    """Return the lines of a JSON Lines file that are values of type `shape`, and what is wrong with the others.

    A last line without a line break is left out silently: it is being written, or a crash cut it.
    """
    try:
        content = read_bytes(path)
    except DamagedFile as error:
        return Lines((), (f"{path.name} can't be read: {error.reason}",))
    values, damage = [], []
    *whole, rest = (content or b"").split(b"\n")
    for number, line in enumerate([*whole, rest], start=1):
        try:
            values.append(_line_as(line, shape))
        except ValueError as error:
            if line.strip() and number <= len(whole):
                damage.append(f"line {number} of {path.name} is left out: {in_words(error)}")
    return Lines(tuple(values), tuple(damage))


def is_value(line: bytes, shape: TypeAdapter[T]) -> bool:
    """Return whether a line of a JSON Lines file is a value of type `shape`."""
    try:
        _line_as(line, shape)
    except ValueError:
        return False
    return True


def in_words(error: ValueError) -> str:
    """Say in one line what is wrong with a value."""
    if not isinstance(error, ValidationError):
        return first_line(error)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def is_finite(value: Any) -> bool:
    """Return whether a JSON value has only finite numbers, in all its parts. Python reads JSON's 1e999 as infinity."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _line_as(line: bytes, shape: TypeAdapter[T]) -> T:
    _finite(line)
    value = shape.validate_json(line, strict=True)
    if (flaw := getattr(value, "flaw", None)) is not None:
        raise ValueError(flaw)
    return value


def _finite(content: bytes) -> Any:
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {first_line(error)}") from error
    if not is_finite(value):
        raise ValueError("a number is infinite")
    return value


def _value(path: Path, content: bytes) -> Any:
    if not content.strip():
        raise DamagedFile(path, "it is empty")
    try:
        return _finite(content)
    except ValueError as error:
        raise DamagedFile(path, in_words(error)) from error


def _in_its_place(mode: int) -> str:
    return "a folder is in its place" if stat.S_ISDIR(mode) else "a pipe or a device is in its place"
