"""Writing so that a crash at any moment leaves the old or the new."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from trials.system.files import (
    append_json_line,
    in_place,
    link_file,
    link_folder,
    read_json_lines,
    recover_folder,
    remove_folder,
    replace_folder,
    set_aside_name,
    write_json,
    write_text,
)


def _folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(content)
    return path


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    write_json(path, {"n": 2, "who": "Zoë"})
    assert json.loads(path.read_text()) == {"n": 2, "who": "Zoë"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_json_is_never_written(tmp_path: Path, value: float) -> None:
    append_json_line(tmp_path / "lines", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "whole", {"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json_line(tmp_path / "lines", {"loss": value})
    assert not (tmp_path / "whole").exists()
    assert read_json_lines(tmp_path / "lines") == [{"loss": 1.0}]


@pytest.mark.parametrize(
    "cut", ['{"step": 3, "eval_l', "{", '{"who": "Zo\xc3'], ids=["in a key", "at once", "in UTF-8"]
)
def test_a_cut_last_line_is_skipped_and_the_next_one_stands_alone(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})
    append_json_line(path, {"step": 2})
    with path.open("ab") as file:
        file.write(cut.encode("latin-1"))
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    append_json_line(path, {"step": 4})
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}, {"step": 4}]


def test_a_line_without_its_newline_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}')
    append_json_line(path, {"step": 2})
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]


def test_no_file_has_no_lines_and_what_is_no_object_is_no_line(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "absent") == []
    (tmp_path / "odd").write_text('[1]\n7\n{"a": 1}\n')
    assert read_json_lines(tmp_path / "odd") == [{"a": 1}]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for content in ("first", "second", "third"):
        replace_folder(_folder(tmp_path / "new", content), target)
        assert (target / "weights").read_text() == content
    assert list(tmp_path.iterdir()) == [target]


def test_a_crash_between_the_two_renames_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for name in (set_aside_name(target).name, "adapter.old"):  # the second one is that of earlier versions
        _folder(tmp_path / name, name)
        assert (in_place(target) / "weights").read_text() == name
        recover_folder(target)
        assert (target / "weights").read_text() == name
        remove_folder(target)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_removed_leaves_no_older_one_to_be_read_in_its_place(tmp_path: Path) -> None:
    target = _folder(tmp_path / "adapter", "new")
    _folder(set_aside_name(target), "older")
    remove_folder(target)
    assert not in_place(target).exists()


def test_settling_never_touches_a_folder_in_its_place(tmp_path: Path) -> None:
    target = _folder(tmp_path / "adapter", "new")
    _folder(tmp_path / "adapter.old", "old")  # a crash after the second rename
    recover_folder(target)
    assert (target / "weights").read_text() == "new"
    replace_folder(_folder(tmp_path / "newer", "newer"), target)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_linked_folder_takes_no_room_of_its_own_and_outlives_the_first(tmp_path: Path) -> None:
    first = _folder(tmp_path / "first", "content")
    link_folder(first, tmp_path / "second")
    weights = tmp_path / "second" / "weights"
    assert weights.stat().st_ino == (first / "weights").stat().st_ino
    replace_folder(_folder(tmp_path / "new", "other"), first)
    assert weights.read_text() == "content"


def test_where_the_disk_has_no_links_a_copy_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first = _folder(tmp_path / "first", "content")
    link_folder(first, tmp_path / "second")
    link_file(first / "weights", tmp_path / "second" / "weights")  # in the place of the one that's there
    assert (tmp_path / "second" / "weights").read_text() == "content"
    assert (tmp_path / "second" / "weights").stat().st_ino != (first / "weights").stat().st_ino


def test_a_link_is_followed_and_a_device_or_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert pipe.is_fifo()


def test_files_beside_it_that_are_called_alike_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html.new").write_text("the user's")
    write_text(tmp_path / "report.html", "ours")
    assert (tmp_path / "report.html.new").read_text() == "the user's"
