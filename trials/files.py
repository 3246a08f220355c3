"""Writing so that a process can die at any moment: a reader sees the old or the new, never half of one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes beside `path` and renames over it."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; NaN and infinity are refused (ValueError), they aren't JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Appends one line and makes sure that it's on disk. A line cut by a crash is skipped by `read_json_lines`."""
    with path.open("ab") as file:
        if file.tell() and not _ends_with_newline(path):
            file.write(b"\n")
        file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON objects; none if there is no file, or something else in its place."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def replace_folder(new: Path, target: Path) -> None:
    """Puts folder `new` in the place of `target`. After a crash in between, `settle_folder` finishes the job."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def settle_folder(target: Path) -> None:
    """Undoes a replacement that was cut between its two renames: the old folder goes back to its place.

    Only for who owns the folder: done while another process replaces it, this makes that process fail.
    """
    old = target.with_name(target.name + ".old")
    if old.exists() and not target.exists():
        old.rename(target)


def link_folder(source: Path, target: Path) -> None:
    """A second name for every file of a folder, or a copy where the disk has no hard links.

    For files that are replaced and never written to: a change would show under both names.
    """
    shutil.copytree(source, target, copy_function=link_file)


def link_file(source: str | Path, target: str | Path) -> None:
    """The same for one file; one that is there already under the second name is replaced."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync_folder(folder: Path) -> None:
    """Makes sure that all files of a folder are on disk, before its name says that they are."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
