"""Drivers and GPUs as NVIDIA's library tells of them, and what is to say of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.preflight.all_reduce import AllReduce
from orchestrator.preflight.gpus import all_reduce_checks, driver_checks
from orchestrator.state.check_result import Severity
from trials.system.gpus import Driver, GpuState, driver_here, gpu_count, torch_cuda

GIB = 2**30
RTX_4090 = GpuState(0, "NVIDIA GeForce RTX 4090", 24 * GIB, int(23.5 * GIB))
DRIVER = Driver("550.54.14", (12, 4), (RTX_4090,), "12.8")
FAST, SLOW = AllReduce(2, 100.0), AllReduce(2, 10.0)
HANGS = AllReduce(2, None, "it hangs (90 s)")
NOBODY = "export NCCL_DEBUG=INFO NCCL_DEBUG_FILE=nccl.%p to find why in those files, or give --gpus-per-trial 1"


def levels(
    driver: Driver | str | None, gpus: int = 1, least: float | None = 5.0, **environ: str
) -> dict[str, Severity]:
    return {result.name: result.level for result in driver_checks(driver, gpus, least, environ)}


def test_a_machine_that_is_ready_is_said_to_be() -> None:
    assert levels(DRIVER) == {"driver": Severity.OK, "GPU 0": Severity.OK}
    driver, gpu = driver_checks(DRIVER, 1, 5.0, {})
    assert driver.text == "550.54.14, for CUDA 12.4; torch is built for CUDA 12.8"
    assert gpu.text == "NVIDIA GeForce RTX 4090, 23.5 of 24.0 GiB free"


@pytest.mark.parametrize(
    "driver",
    [
        replace(DRIVER, torch_cuda="13.0"),
        replace(DRIVER, torch_cuda=None),
        "Driver/library version mismatch",
    ],
)
def test_a_driver_that_torch_cannot_use_matters_to_trials_on_gpus(driver: Driver | str) -> None:
    assert levels(driver)["driver"] is Severity.IMPOSSIBLE
    assert levels(driver, gpus=0)["driver"] is Severity.WARNING
    assert all(result.remedy for result in driver_checks(driver, 1, None, {}) if result.level is not Severity.OK)


def test_memory_that_others_have_is_pointed_out() -> None:
    used = replace(DRIVER, gpus=(RTX_4090, replace(RTX_4090, index=1, free_bytes=20 * GIB)))
    assert levels(used) == {"driver": Severity.OK, "GPU 0": Severity.OK, "GPU 1": Severity.WARNING}
    full = replace(DRIVER, gpus=(replace(RTX_4090, free_bytes=3 * GIB),))
    found = driver_checks(full, 1, 5.0, {})[1]
    assert found.level is Severity.WARNING
    assert "takes 5.0 GiB" in found.remedy


def test_a_driver_that_tells_less_is_not_judged_by_it() -> None:
    """As `nvidia-smi` or the driver's files tell, in some containers."""
    assert levels(replace(DRIVER, cuda=None, torch_cuda="99.0"))["driver"] is Severity.OK
    without = replace(DRIVER, gpus=(replace(RTX_4090, memory_bytes=None, free_bytes=None),))
    found = driver_checks(without, 1, 5.0, {})[1]
    assert (found.level, found.text) == (
        Severity.WARNING,
        "NVIDIA GeForce RTX 4090; the driver doesn't tell its memory",
    )
    assert "NVIDIA_DRIVER_CAPABILITIES" in found.remedy


def test_gpus_that_are_hidden_are_said_to_be() -> None:
    two = replace(DRIVER, gpus=(RTX_4090, replace(RTX_4090, index=1)))
    assert levels(two, CUDA_VISIBLE_DEVICES="1") == {"driver": Severity.OK, "GPU 1": Severity.OK}
    (found,) = driver_checks(two, 0, 5.0, {"CUDA_VISIBLE_DEVICES": ""})
    assert found.text == "CUDA_VISIBLE_DEVICES= leaves none of 2; trials would run on the CPU"


def test_an_old_driver_of_two_rtx_4000_needs_p2p_off() -> None:
    two = replace(DRIVER, version="535.183.01", gpus=(RTX_4090, replace(RTX_4090, index=1)))
    assert levels(two, gpus=1)["P2P"] is Severity.WARNING
    assert levels(two, gpus=2)["P2P"] is Severity.IMPOSSIBLE
    assert levels(two, gpus=2, NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")["P2P"] is Severity.OK
    assert "P2P" not in levels(replace(two, version="550.40.07"), gpus=2)
    assert "P2P" in levels(replace(two, version="550.40.06"), gpus=2)
    assert "P2P" not in levels(replace(two, gpus=(RTX_4090,)))
    (found,) = [one for one in driver_checks(two, 2, None, {}) if one.name == "P2P"]
    assert found.remedy.endswith("export NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1")


@pytest.mark.parametrize(
    ("with_p2p", "without", "level", "remedy"),
    [
        (FAST, SLOW, Severity.OK, ""),
        (SLOW, FAST, Severity.WARNING, "export NCCL_P2P_DISABLE=1: it's faster without"),
        (HANGS, SLOW, Severity.WARNING, "export NCCL_P2P_DISABLE=1 NCCL_IB_DISABLE=1 before the search"),
        (FAST, HANGS, Severity.OK, ""),
        (HANGS, HANGS, Severity.IMPOSSIBLE, NOBODY),
    ],
)
def test_gpus_add_up_one_way_or_the_other(
    with_p2p: AllReduce, without: AllReduce, level: Severity, remedy: str
) -> None:
    (found,) = all_reduce_checks(with_p2p, without, 2)
    assert (found.level, found.remedy) == (level, remedy)
    assert found.text == f"all-reduce over 2 GPUs: with P2P {with_p2p.in_words()}, without {without.in_words()}"
    assert all_reduce_checks(HANGS, HANGS, 1)[0].level is Severity.WARNING


def test_this_machine_is_asked_for_real() -> None:
    import torch

    assert torch_cuda() == torch.version.cuda
    found = driver_here()
    if gpu_count():
        assert isinstance(found, Driver)
        assert len(found.gpus) == torch.cuda.device_count()
    else:
        assert found is None
        assert [result.level for result in driver_checks(found, 0, None)] == [Severity.OK]
