"""Data files that hold text, opened in the encoding they were saved in; other kinds of files are named and refused."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from trials.errors import DataError

# The longer marks come first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_KINDS = {
    b"version https://git-lfs.github.com/": "only a Git LFS pointer. Fetch the file itself by `git lfs pull`",
    b"PAR1": "Parquet. Give it a name that ends in .parquet",
    b"\x1f\x8b": "compressed (gzip). Unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd). Unpack it first",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook. Unpack it, or save it as CSV in UTF-8",
}
_LOOKED_AT_BYTES = 4096


def refuse_other_kinds(path: Path) -> None:
    """Raise `DataError` if a data file is a Git LFS pointer, compressed, or Parquet under another name."""
    with reading(path):
        beginning = _beginning(path)
    for mark, kind in _OTHER_KINDS.items():
        if beginning.startswith(mark) and (path.suffix != ".parquet" or mark != b"PAR1"):
            raise DataError(f"{path} is {kind}.")


@contextmanager
def opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open the text of a file in UTF-8, or in UTF-16 or UTF-32 by its byte order mark, which is left out.

    UTF-16 without a mark is recognised by its zero bytes. Raises `DataError`, also while the text is read. For UTF-8 it
    names the line.
    """
    # This error handler passes half a character on: it then costs its row and not the whole file.
    with reading(path), path.open(encoding=_encoding(path), errors="surrogatepass", newline=newline) as file:
        yield file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the file system and of the encoding into a `DataError` that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        where = _first_line_not_in(path, error.encoding)
        encoding = error.encoding.upper()
        raise DataError(f"{path} is not {encoding} text ({error.reason}{where}). Save it in UTF-8.") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}. Check its permissions.") from error


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LOOKED_AT_BYTES)


def _encoding(path: Path) -> str:
    beginning = _beginning(path)
    marked = next((encoding for mark, encoding in _MARKS if beginning.startswith(mark)), None)
    if marked is not None:
        return marked
    # Every second byte of English in UTF-16 is 0. UTF-8 has none but the character NUL.
    if len(beginning) > 1 and beginning[0] and not any(beginning[1::2]):
        return "utf-16-le"
    if len(beginning) > 1 and not any(beginning[::2]):
        return "utf-16-be"
    return "utf-8"


def _first_line_not_in(path: Path, encoding: str) -> str:
    if encoding != "utf-8":
        return ""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(errors="surrogatepass")
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""
