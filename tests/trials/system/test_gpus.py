"""The GPUs of a machine as its driver tells of them: by a real `nvidia-smi` of the test's own, or by files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.execution import tune_run as tuner
from orchestrator.execution.cluster import gpus_of_nodes
from orchestrator.planning.gpu_specs import known_rates
from tests.support.fake_driver import FakeDriver
from trials.system import gpus
from trials.system.gpus import Driver, GpuState, driver_here, gpu_count, gpu_names, gpus_here, use_one_gpu, visible

ADA, HOPPER = "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3"
MIB = 2**20


def test_where_nothing_tells_of_a_gpu_there_is_none(fake_driver: FakeDriver) -> None:
    assert driver_here() is None
    assert (gpu_count(), gpu_names(), gpus_here()) == (0, [], ())


def test_nvidia_smi_is_asked_where_nvml_is_missing(fake_driver: FakeDriver) -> None:
    fake_driver(ADA, HOPPER)
    found = driver_here()
    assert isinstance(found, Driver)
    assert (found.version, found.cuda) == ("550.54.14", (12, 4))
    assert found.gpus[0] == GpuState(0, ADA, 24564 * MIB, 24083 * MIB, "GPU-0aaa-bbb")
    assert gpu_names() == [ADA, HOPPER]
    fake_driver(ADA, total_mib="[N/A]", free_mib="[N/A]")
    assert gpus_here() == (GpuState(0, ADA, None, None, "GPU-0aaa-bbb"),)


def test_a_command_that_fails_tells_nothing(fake_driver: FakeDriver, tmp_path: Path) -> None:
    fake_driver(ADA)
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n", encoding="utf-8")
    broken.chmod(0o755)
    os.environ["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"  # put back with the fixture's
    assert driver_here() is None


def test_the_drivers_files_tell_names_and_device_files_a_number(
    fake_driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_DEVICES", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert [gpu.name for gpu in gpus_here()] == [gpus.UNKNOWN] * 2
    monkeypatch.setattr(gpus, "_PROC", tmp_path / "proc")
    (tmp_path / "proc/gpus/0000:01:00.0").mkdir(parents=True)
    (tmp_path / "proc/gpus/0000:01:00.0/information").write_text(f"Model: \t\t {ADA}\nIRQ:   \t\t 42\n")
    assert gpus_here() == (GpuState(0, ADA, None, None),)


def test_a_driver_that_cannot_be_asked_is_no_machine_without_a_gpu(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update of the driver: the search then says what is wrong, and does not train on the CPU."""
    monkeypatch.setattr(gpus, "_by_nvml", lambda: "Driver/library version mismatch")
    gpus._known.cache_clear()
    assert driver_here() == "Driver/library version mismatch"
    assert gpu_count() == 1


FOUR = tuple(GpuState(number, ADA, 1, 1, f"GPU-{number}aaa") for number in range(4))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2", [2]),
        ("3, 1", [3, 1]),
        ("0,7,1", [0]),  # CUDA stops at the first that isn't there
        ("1,1", [1]),
        ("GPU-2a,GPU-0aaa", [2, 0]),
        ("GPU-", []),  # of several
    ],
)
def test_which_gpus_a_process_sees(given: str | None, expected: list[int]) -> None:
    assert [gpu.index for gpu in visible(FOUR, given)] == expected


def test_hidden_gpus_are_not_there(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_driver(ADA, HOPPER)
    monkeypatch.setenv(gpus.VISIBLE, "1")
    assert (gpu_count(), gpu_names()) == (1, [HOPPER])
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert (gpu_count(), gpus_here()) == (0, ())


@pytest.mark.parametrize(
    ("before", "number", "after", "is_there"),
    [
        (None, None, "0", True),
        ("1,0", None, "1", True),
        ("GPU-1a", None, "GPU-1a", True),
        ("", None, "", True),
        ("0", "1", "1", True),
        (None, "2", "2", False),
    ],
)
def test_one_process_takes_one_gpu(
    fake_driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    number: str | None,
    after: str,
    is_there: bool,
) -> None:
    fake_driver(ADA, HOPPER)
    if before is not None:
        monkeypatch.setenv(gpus.VISIBLE, before)
    assert use_one_gpu(number) is is_there
    assert os.environ[gpus.VISIBLE] == after


def test_rays_gpus_are_the_drivers(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself asks NVML only."""
    fake_driver(ADA, ADA, ADA)
    monkeypatch.setenv(gpus.VISIBLE, "0,2")
    with tuner.ray_session(dashboard=False):
        assert gpus_of_nodes() == [2]


@pytest.mark.parametrize(
    "name", [ADA, "NVIDIA GeForce RTX 4090 Laptop GPU", HOPPER, "NVIDIA A100-SXM4-40GB", "NVIDIA L4", "NVIDIA L40"]
)
def test_what_is_known_of_them(name: str) -> None:
    assert known_rates(name) is not None


def test_names_are_matched_whole() -> None:
    assert known_rates("NVIDIA L40") != known_rates("NVIDIA L4") != known_rates("NVIDIA L40S")
    assert known_rates("NVIDIA GeForce RTX 4090 Laptop GPU") != known_rates(ADA)
    for unknown in ("NVIDIA GeForce GTX 970", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""):
        assert known_rates(unknown) is None
