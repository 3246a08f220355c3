"""Text is UTF-8 everywhere, whatever the locale says: nothing is opened without its encoding."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import ROOT

SOURCES = [
    file for name in ("orchestrator", "scripts", "search_spaces", "trials") for file in (ROOT / name).rglob("*.py")
]
TEXT = ("read_text", "write_text")
NO_FILE = ("os", "webbrowser", "zipfile", "store", "files", "log", "self")  # whose `open` takes no encoding


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


@pytest.fixture(scope="module")
def latin_1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an old account, whose locale is not UTF-8."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef makes the locale, and isn't installed")
    folder = tmp_path_factory.mktemp("locale")
    made = subprocess.run(["localedef", "-i", "de_DE", "-f", "ISO-8859-1", folder / "de_DE.ISO-8859-1"], check=False)
    if made.returncode:
        pytest.skip("this machine has no sources of locales")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUTF8"}
    return {**kept, "LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1"}


def said(environ: dict[str, str], *command: str | bytes) -> tuple[int, bytes]:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_command_under_another_locale_is_in_utf_8(latin_1: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "läufe"
    assert said(latin_1, "-c", "import sys; print(sys.getfilesystemencoding())") == (0, b"iso8859-1\n")
    code, text = said(latin_1, "-m", "orchestrator.report", str(folder))
    assert code == 2
    assert str(folder).encode("utf-8") in text
    assert "lÃ¤ufe".encode() not in text


def test_a_name_that_is_not_utf_8_is_refused(latin_1: dict[str, str], tmp_path: Path) -> None:
    for environ in (latin_1, dict(os.environ)):
        code, text = said(environ, "-m", "orchestrator.report", os.fsencode(tmp_path) + b"/l\xe4ufe")
        assert code == 2
        assert b"is not UTF-8" in text
        assert b"Traceback" not in text


def test_a_program_of_somebody_elses_is_not_started_again(latin_1: dict[str, str], tmp_path: Path) -> None:
    code, text = said(
        latin_1, "-c", "print('once'); from orchestrator.report.render import main; exit(main(['nowhere']))"
    )
    assert (code, text.count(b"once")) == (2, 1)
    assert b"Set PYTHONUTF8=1" in text
