"""Dated lines of several processes in one file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.cli import ROOT
from trials.console.line_log import LineCopy, LineLog

WRITES = """
import sys
from pathlib import Path
from trials.console.line_log import LineLog
log = LineLog(Path(sys.argv[1]))
for number in range(500):
    log.append(f"{sys.argv[2]} {number} " + "x" * 200)
"""
DATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")


def lines(log: LineLog) -> list[str]:
    found = log.path.read_text(encoding="utf-8").splitlines()
    assert all(DATED.match(line) for line in found)
    return [line.split(" ", 1)[1] for line in found]


def test_processes_do_not_cut_each_other_s_lines(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "logs" / "search.log")
    both = [subprocess.Popen([sys.executable, "-c", WRITES, str(log.path), name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    for name in "ab":
        assert [int(line.split()[1]) for line in lines(log) if line[0] == name] == list(range(500))


def test_pieces_become_lines_and_what_is_for_a_terminal_is_left_out(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.txt")
    copy = LineCopy(log)
    for piece in (b"\x1b[?25hone ", b"line\nand ", b"an\xff\xc3", b"\xa4other\r\n\n", b"\x1b[2Kthe last"):
        copy.write(piece)
    assert lines(log) == ["one line", "and an\ufffd\xe4other"]
    copy.close()
    assert lines(log)[2:] == ["the last"]


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.txt")
    assert log.append("a file \udcff")
    assert lines(log) == ["a file \\udcff"]


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not LineLog(tmp_path / "file" / "log.txt").append("to nowhere")
