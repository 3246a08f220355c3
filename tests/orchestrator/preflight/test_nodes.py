"""Nodes of a cluster compared: this machine's own report, and ones that differ from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.preflight.nodes import ClockOffset, NodeReport, clock_checks, node_checks, this_node
from orchestrator.state.check_result import CheckResult, Severity
from tests.support.cli import ROOT
from trials.system.gpus import Driver, GpuState


@pytest.fixture(scope="module")
def here() -> NodeReport:
    return replace(this_node(), driver=None, disk_used=0.5)


def wrong(found: list[CheckResult]) -> dict[str, Severity]:
    return {result.name: result.level for result in found if result.level is not Severity.OK}


def other(here: NodeReport, **versions: str) -> NodeReport:
    return replace(here, versions={**here.versions, **versions})


def test_nodes_that_are_alike_have_one_line(here: NodeReport) -> None:
    found = node_checks(here, {"a": here, "b": here}, 0, None)
    assert wrong(found) == {}
    (versions,) = [result for result in found if result.name == "versions"]
    assert versions.text.startswith(f"alike on 2 nodes: code {here.versions['code']}, ray {here.versions['ray']}")


def test_other_code_is_impossible_and_another_torch_a_warning(here: NodeReport) -> None:
    found = node_checks(here, {"a": here, "b": other(here, code="1f"), "c": other(here, torch="1.0")}, 0, None)
    assert wrong(found) == {"b versions": Severity.IMPOSSIBLE, "c versions": Severity.WARNING}
    assert f"code 1f; here {here.versions['code']}" in str(found)
    assert "versions" not in {result.name for result in found}
    absent = replace(here, versions={key: value for key, value in here.versions.items() if key != "torch"})
    assert f"torch none; here {here.versions['torch']}" in str(node_checks(here, {"a": absent}, 0, None))


def test_the_digest_changes_with_any_source(here: NodeReport, tmp_path: Path) -> None:
    for package in ("orchestrator", "search_spaces", "trials"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("demo", "__pycache__"))
    script = "from orchestrator.preflight.nodes import this_node; print(this_node().versions['code'])"

    def of_the_copy() -> str:
        return subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, env=environ, text=True).strip()

    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert of_the_copy() == here.versions["code"]
    with (tmp_path / "trials" / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert of_the_copy() != here.versions["code"]


def test_a_full_disk_and_a_missing_key_are_pointed_out(here: NodeReport) -> None:
    found = node_checks(here, {"a": replace(here, disk_used=0.97)}, 0, None)
    assert "97 % full" in str(found)
    assert wrong(found) == {"a": Severity.WARNING}
    keyless = replace(here, logs_to_wandb=not here.logs_to_wandb)
    assert "WANDB_API_KEY" in str(node_checks(here, {"a": keyless}, 0, None))


def test_a_broken_driver_is_its_node_s(here: NodeReport) -> None:
    found = node_checks(here, {"a": here, "b": replace(here, driver="Driver/library version mismatch")}, 1, None)
    assert wrong(found) == {"b driver": Severity.IMPOSSIBLE}


def test_what_decides_about_p2p_is_each_node_s_own(here: NodeReport, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = GpuState(0, "NVIDIA GeForce RTX 4090", 24 * 2**30, 24 * 2**30)
    old = Driver("535.183.01", (12, 4), (gpu, replace(gpu, index=1)), "12.4")
    without = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    nodes = {"a": replace(here, driver=old, nccl={}), "b": replace(here, driver=old, nccl=without)}
    assert wrong(node_checks(here, nodes, 2, None)) == {"a P2P": Severity.IMPOSSIBLE}
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert this_node().nccl["NCCL_P2P_DISABLE"] == "1"


def test_a_clock_is_wrong_only_if_the_round_trip_does_not_explain_it() -> None:
    right, slow = ClockOffset(0.002, 0.001), ClockOffset(2.0, 4.0)
    found = clock_checks({"a": right, "b": slow, "c": ClockOffset(-3.0, 0.002)})
    assert wrong(found) == {"c clock": Severity.WARNING}
    (line,) = [result for result in found if result.name == "c clock"]
    assert line.text == "3.0 s behind (round trip 2.0 ms)"
    assert line.remedy.endswith("their training so much too late")
    (line,) = [result for result in found if result.name == "clocks"]
    assert line.text == "2 within 4.000 s of this one; round trips 1 to 4000 ms"
