"""Text is UTF-8 everywhere, whatever the locale says: nothing is opened without its encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.commands import ROOT

SOURCES = [
    file for name in ("orchestrator", "scripts", "search_spaces", "trials") for file in (ROOT / name).rglob("*.py")
]
TEXT = ("read_text", "write_text")
NO_FILE = ("os", "webbrowser", "zipfile", "store", "files")  # whose `open` takes no encoding


def test_nothing_is_read_or_written_in_the_encoding_of_the_locale() -> None:
    assert [place for file in SOURCES for place in without_encoding(file)] == []


def without_encoding(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and is_text(node) and not has(node, "encoding"):
            yield f"{file.relative_to(ROOT)}:{node.lineno}"


def is_text(call: ast.Call) -> bool:
    """Whether a call opens a file or a process as text."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in TEXT:
        return isinstance(call.func, ast.Attribute)
    if name in ("open", "fdopen"):
        return not any("b" in text for text in constants(call)) and owner(call) not in NO_FILE
    return any(keyword.arg == "text" and getattr(keyword.value, "value", None) is True for keyword in call.keywords)


def owner(call: ast.Call) -> str:
    value = getattr(call.func, "value", None)
    return str(getattr(value, "id", getattr(value, "attr", ""))).strip("_")


def constants(call: ast.Call) -> list[str]:
    """The file's mode, in whatever way it is given."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def has(call: ast.Call, name: str) -> bool:
    return any(keyword.arg == name for keyword in call.keywords)
