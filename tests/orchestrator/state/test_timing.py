"""What the end of a search took, on disk beside what was kept for it."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest

from orchestrator.state.run_dir import RunDir
from orchestrator.state.timing import EXPORTED, TRAINING_OVER, end_seconds, read_timing, record_moment, timed
from tests.support.fake_search import START


def test_before_the_end_nothing_is_known(run: RunDir) -> None:
    assert read_timing(run) == {}
    assert end_seconds({}) is None


def test_parts_and_moments_are_kept_together(run: RunDir) -> None:
    record_moment(run, TRAINING_OVER, START)
    assert end_seconds(read_timing(run)) is None
    with timed(run, "export"):
        time.sleep(0.02)
    record_moment(run, EXPORTED, START + timedelta(seconds=30))
    assert end_seconds(read_timing(run)) == 30
    with timed(run, "report"):
        pass
    found = read_timing(run)
    assert 0.02 <= found["export_seconds"] < 5
    assert end_seconds(found) == pytest.approx(30 + found["report_seconds"])


def test_what_fails_has_no_time(run: RunDir) -> None:
    with pytest.raises(ZeroDivisionError), timed(run, "export"):
        raise ZeroDivisionError
    assert read_timing(run) == {}


@pytest.mark.parametrize("content", ["", "[]", '{"training_over": 3, "exported": "soon"}'])
def test_a_broken_file_is_as_none(run: RunDir, content: str) -> None:
    (run.path / "timing.json").write_text(content)
    assert end_seconds(read_timing(run)) is None
    record_moment(run, TRAINING_OVER, START)
    assert read_timing(run)[TRAINING_OVER] == START.isoformat(timespec="milliseconds")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_no_error(run: RunDir) -> None:
    run.path.chmod(0o500)
    record_moment(run, TRAINING_OVER, START)
    run.path.chmod(0o700)
    assert read_timing(run) == {}
