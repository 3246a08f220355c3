"""Checkpoints on disk: whole or none at all, and how much room they take."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoint_dirs import LOG, evaluate, save, write_checkpoint, writer
from tests.support.cli import ROOT
from trials.errors import RunFolderError
from trials.records.checkpoints import (
    choose_checkpoint,
    move_newer_checkpoints,
    remove_checkpoints,
    set_broken_aside,
    whole_checkpoints,
)
from trials.records.trial_dir import TrialDir
from trials.system.timer import TrialTimer


def _steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in whole_checkpoints(folder)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    watch = TrialTimer(seconds=100.0, training_seconds=50.0)
    to = writer(tmp_path, timer=watch)
    to.write(7, LOG, lambda: save(to, 7))
    (found,) = whole_checkpoints(tmp_path)
    assert (found.path, found.step) == (tmp_path / "checkpoints" / "checkpoint-7", 7)
    assert (found.progress.log, found.progress.base_eval_loss) == (LOG, 3.0)
    assert found.progress.seconds == pytest.approx(100.0, abs=5)
    assert found.progress.training_seconds == pytest.approx(50.0, abs=5)
    assert sorted(path.name for path in found.path.iterdir()) == [
        "adapter_model.safetensors",
        "checkpoint.json",
        "optimizer.pt",
    ]


def test_they_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        write_checkpoint(tmp_path, step)
    assert _steps(tmp_path) == [9, 10, 100]


def test_a_trial_without_any(tmp_path: Path) -> None:
    assert whole_checkpoints(tmp_path) == []
    remove_checkpoints(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds no whole checkpoint: machine\.checkpoint_every_rows asked for"):
        choose_checkpoint(tmp_path, None)


def _cut(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8")[:-3], encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _cut(path / "optimizer.pt"),
        lambda path: (path / "adapter_model.safetensors").unlink(),
        lambda path: (path / "checkpoint.json").unlink(),
        lambda path: _cut(path / "checkpoint.json"),
        lambda path: (path / "checkpoint.json").write_text("[]"),
        lambda path: path.rename(path.with_name("checkpoint-8")),
    ],
    ids=["cut", "missing", "no marker", "marker cut", "other marker", "other step"],
)
def test_what_is_not_whole_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 3)
    damage(write_checkpoint(tmp_path, 6))
    assert choose_checkpoint(tmp_path, None).step == 3
    with pytest.raises(RunFolderError, match=r"holds no whole checkpoint of step 6\. Give --checkpoint one of: 3\."):
        choose_checkpoint(tmp_path, 6)
    with caplog.at_level(logging.WARNING, logger="trials"):
        set_broken_aside(tmp_path)
    assert "is not whole, and not used; it's" in caplog.text
    broken, whole = sorted((tmp_path / "checkpoints").glob("*-*"))
    assert (broken.name[:-1], whole.name) == ("broken-", "checkpoint-3")
    write_checkpoint(tmp_path, 6)
    assert _steps(tmp_path) == [3, 6]


def test_what_was_set_aside_before_stays(tmp_path: Path) -> None:
    for word in ("one", "another"):
        (write_checkpoint(tmp_path, 6) / "optimizer.pt").write_text(word)
        set_broken_aside(tmp_path)
    kept = sorted((tmp_path / "checkpoints").glob("broken-*"))
    assert [(path.name, (path / "optimizer.pt").read_text()) for path in kept] == [
        ("broken-6", "one"),
        ("broken-6-2", "another"),
    ]


def _is_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("damage", [Path.unlink, _cut, _is_a_pipe], ids=["missing", "cut", "a pipe"])
def test_a_trial_goes_on_after_the_record_of_its_best_adapter_was_damaged(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for name in ("point.json", "eval_rows.json"):
        folder = TrialDir(tmp_path / name)
        folder.path.mkdir()
        evaluate(folder, 3, 2.0, 2.0)
        damage(folder.adapter / name)
        write_checkpoint(folder.path, 3)
        assert choose_checkpoint(folder.path, None).step == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.support.checkpoint_dirs import LOG, save, write_checkpoint, writer
folder = Path(sys.argv[1])
write_checkpoint(folder, 3)
to = writer(folder)
def killed():
    save(to, 6)
    os.kill(os.getpid(), signal.SIGKILL)
to.write(6, LOG, killed)
"""


def test_killed_while_writing_there_is_the_one_before(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert (tmp_path / "checkpoints" / "unfinished" / "checkpoint-6" / "optimizer.pt").exists()
    assert _steps(tmp_path) == [3]
    write_checkpoint(tmp_path, 6)
    assert _steps(tmp_path) == [3, 6]
    assert not list((tmp_path / "checkpoints" / "unfinished").iterdir())


def test_one_that_can_not_be_written_leaves_none(tmp_path: Path) -> None:
    def disk_is_full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        writer(tmp_path).write(3, LOG, disk_is_full)
    assert _steps(tmp_path) == []


@pytest.mark.parametrize(("keep", "left"), [(None, [1, 2, 3, 4]), (2, [3, 4]), (1, [4]), (9, [1, 2, 3, 4])])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step, keep=keep)
    assert _steps(tmp_path) == left
    assert len([path for path in (tmp_path / "checkpoints").iterdir() if path.name != "unfinished"]) == len(left)


def test_the_best_adapter_goes_along_and_takes_no_room_until_it_is_surpassed(tmp_path: Path) -> None:
    folder = TrialDir(tmp_path)
    evaluate(folder, 2, 1.5, 1.5)
    first, second = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 3)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    inode = weights.stat().st_ino
    assert (first / "best_adapter" / weights.name).stat().st_ino == inode
    assert (second / "best_adapter" / weights.name).stat().st_ino == inode
    # Evaluated at this very step, the best adapter is the checkpoint's own.
    assert (first / weights.name).stat().st_ino == inode
    assert (second / weights.name).read_text() == "weights of step 3"
    evaluate(folder, 4, 1.0, 1.0)
    assert weights.read_text() == "weights of step 4"
    assert (second / "best_adapter" / weights.name).read_text() == "weights of step 2"
    assert json.loads((second / "best_adapter" / "point.json").read_text())["step"] == 2
    assert json.loads((second / "eval_rows.json").read_text())["loss_sums"] == [1.5, 1.5]
    assert _steps(tmp_path) == [2, 3]


def test_writing_is_no_training(tmp_path: Path) -> None:
    watch = TrialTimer()
    watch.start_training()
    to = writer(tmp_path, timer=watch)

    def slow() -> None:
        save(to, 1)
        time.sleep(0.3)

    to.write(1, LOG, slow)
    watch.stop_training()
    assert watch.training_seconds < 0.25
    assert watch.seconds > 0.3


def test_newer_ones_move_to_another_folder(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        write_checkpoint(tmp_path / "trial", step)
    (tmp_path / "aside").mkdir()
    move_newer_checkpoints(tmp_path / "trial", 3, tmp_path / "aside")
    assert (_steps(tmp_path / "trial"), _steps(tmp_path / "aside")) == ([3], [6, 9])


def test_all_are_removed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3)
    remove_checkpoints(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_loss_that_is_no_number_is_no_obstacle(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3)
    marker = json.loads((path / "checkpoint.json").read_text())
    marker["progress"]["log"]["loss_sum"] = None
    (path / "checkpoint.json").write_text(json.dumps(marker))
    assert whole_checkpoints(tmp_path)[0].progress.log.loss_sum is None


def test_a_checkpoint_that_was_moved_elsewhere_is_whole_there(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert _steps(tmp_path / "b") == [3]
