"""What says that a disk takes no more, from the libraries that write in a trial, on a disk that is really full."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT
from trials.errors import DiskFull, RunFolderError
from trials.system.disk_full import disk_full_in, is_disk_full, refuse_unmakeable, refuse_unwritable, says_disk_full


def may_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mount = pytest.mark.skipif(not may_mount(), reason="needs a user and mount name space of its own")


def on_small_disk(folder: Path, script: str) -> str:
    """What a script that writes to `target` and catches its error prints."""
    folder.mkdir()
    (folder.parent / "script.py").write_text(
        "import sys\nfrom trials.system.disk_full import is_disk_full\n"
        "target = sys.argv[1] + '/file'\n"
        f"try:\n    {script}\nexcept Exception as error:\n    print(is_disk_full(error), repr(error))\n"
    )
    shell = f"mount -t tmpfs -o size=1m none {folder} && exec {sys.executable} {folder.parent / 'script.py'} {folder}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@needs_mount
@pytest.mark.parametrize(
    "script",
    [
        "open(target, 'w').write('x' * 2**21)",
        "import torch; torch.save(torch.zeros(2**20), target)",
        "import torch; from safetensors.torch import save_file; save_file({'a': torch.zeros(2**20)}, target)",
        "import sqlite3; sqlite3.connect(target).execute('create table t as select zeroblob(2097152)')",
    ],
    ids=["python", "torch", "safetensors", "sqlite"],
)
def test_whoever_writes_to_a_full_disk_is_understood(tmp_path: Path, script: str) -> None:
    assert on_small_disk(tmp_path / "disk", script).startswith("True ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_cause_says_it_as_well(number: int) -> None:
    error = RuntimeError("the adapter can't be saved")
    error.__cause__ = OSError(number, os.strerror(number))
    assert is_disk_full(error)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), ValueError("no"), sqlite3.OperationalError("locked"), None]
)
def test_other_errors_are_not_taken_for_it(error: Exception | None) -> None:
    assert not is_disk_full(error)
    assert not says_disk_full(str(error))


def test_the_error_names_the_file_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"can't write to /dev/full: No space left on device"), disk_full_in(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/full")
    with pytest.raises(DiskFull, match=f"can't write to {tmp_path}: No space"), disk_full_in(tmp_path):
        Path("/dev/full").write_text("x", encoding="utf-8")
    with pytest.raises(DiskFull, match="can't write to /dev/full: No space"), disk_full_in(tmp_path):  # as shutil does
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source", None, "/dev/full")
    with pytest.raises(ValueError, match="no"), disk_full_in(tmp_path):
        raise ValueError("no")


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(RunFolderError, match=r"can't write to /proc/self: .* Make room or give it write access"):
        refuse_unwritable(Path("/proc/self"))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "Not a directory"),
        ("file/trial", "{tmp}/file: Not a directory"),
        ("link", "a link to {tmp}/gone, where nothing is"),
        ("link/trial", "{tmp}/link: a link to {tmp}/gone, where nothing is"),
        ("loop/trial", "{tmp}/loop: a link to loop, where nothing is"),
        ("read-only/a/b", "{tmp}/read-only: Permission denied"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_else(
    place: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "read-only").mkdir(mode=0o555)
    if os.geteuid() == 0 and place.startswith("read-only"):
        monkeypatch.setattr(os, "access", lambda path, _: Path(path).stat().st_mode & 0o222)  # root may write anywhere
    said = f"can't write to {tmp_path / place}: {reason.format(tmp=tmp_path)}. Give another --out folder."
    with pytest.raises(RunFolderError, match=f"^{re.escape(said)}$"):
        refuse_unmakeable(tmp_path / place, "--out")


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    refuse_unmakeable(tmp_path / "a" / "b", "--out")
    refuse_unmakeable(tmp_path, "--out")
    assert list(tmp_path.iterdir()) == []
