"""What --plan looks at on this machine, and what comes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.preflight.checks import disk_check, preflight_lines, run_checks
from orchestrator.search import main
from orchestrator.state.check_result import CheckResult, Severity, raise_if_blocked
from orchestrator.state.search import Search
from tests.conftest import SMALL
from trials.errors import InputError
from trials.system.gpus import gpu_count

PLAN = ["demo", "--plan", "--set", *SMALL]


def test_a_finding_is_one_line_with_its_remedy() -> None:
    bad = CheckResult("disk", Severity.IMPOSSIBLE, "full", "Make room")
    assert str(bad) == "impossible: disk: full. Make room"
    assert preflight_lines([bad, CheckResult("Ray", Severity.OK, "none")]).splitlines()[2] == "  ok: Ray: none"
    raise_if_blocked([CheckResult("disk", Severity.WARNING, "nearly full", "Make room")])
    with pytest.raises(InputError, match=r"the search can.t run here:\n  disk: full\. Make room"):
        raise_if_blocked([bad])


def test_the_disk_is_the_run_folder_s(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "not there yet"
    fine, full = disk_check(out, 0.001), disk_check(out, 1e6)
    assert (fine.level, full.level) == (Severity.OK, Severity.WARNING)
    assert f"GiB free in {tmp_path}, at most 1000000.00 needed" in full.text
    assert fine.text.startswith(f"{shutil.disk_usage(tmp_path).free / 2**30:.0f}"[:1])


@pytest.mark.skipif(gpu_count() > 0, reason="there is more to say of GPUs")
def test_a_machine_by_itself_has_three_lines(search: Search, tmp_path: Path) -> None:
    found = run_checks(search, str(tmp_path), 0.1)
    assert [(result.name, result.level) for result in found] == [
        ("Ray", Severity.OK),
        ("GPUs", Severity.OK),
        ("disk", Severity.OK),
    ]


def test_the_plan_ends_with_it(capsys: pytest.CaptureFixture[str], in_tmp_path: Path) -> None:
    assert main(PLAN) == 0
    said = capsys.readouterr().out
    assert "\npreflight:\n  ok: Ray: no cluster is named; the search starts Ray on this machine\n" in said
    assert not list(in_tmp_path.iterdir())


def test_a_wrong_key_of_w_and_b_is_a_warning_and_no_reason_not_to_search(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    found = {result.name: result for result in run_checks(search, str(tmp_path), 0.1)}["W&B"]
    assert found.level is Severity.WARNING
    assert "WANDB_API_KEY" in str(found)  # its format, or on a very busy machine that nothing was heard
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "W&B" not in {result.name for result in run_checks(search, str(tmp_path), 0.1)}


def test_what_makes_the_search_impossible_is_bad_input_to_plan_and_search_alike(
    capsys: pytest.CaptureFixture[str], in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(PLAN) == 2
    assert "\n  impossible: Ray: RAY_ADDRESS names 127.0.0.1:1, where nobody answers. " in capsys.readouterr().out
    assert main([*PLAN[:1], *PLAN[2:]]) == 2
    assert "Ray: RAY_ADDRESS names 127.0.0.1:1, where nobody answers. Start" in capsys.readouterr().err
    assert not list(in_tmp_path.iterdir())


def test_a_cluster_that_ray_start_left_is_asked_for_gpus_as_a_named_one_is(
    capsys: pytest.CaptureFixture[str], in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_tmp_path / "ray").mkdir()
    (in_tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(in_tmp_path))
    assert main([*PLAN, "--gpus-per-trial", "1"]) == 2
    said = "".join(capsys.readouterr())
    assert "this machine has no NVIDIA GPU" not in said
    assert "names 127.0.0.1:1, where nobody answers" in said
