"""GPUs by their names, as the driver's files give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import gpus
from orchestrator.gpus import gpu_names, known_gpu


def write_driver(folder: Path, *names: str) -> None:
    """What NVIDIA's driver shows of so many GPUs."""
    for number, name in enumerate(names):
        (folder / f"0000:0{number}:00.0").mkdir(parents=True)
        text = f"Model: \t\t {name}\nIRQ:   \t\t 42\nGPU UUID: \t GPU-{number}\n"
        (folder / f"0000:0{number}:00.0" / "information").write_text(text)


def test_names_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    assert gpu_names() == []
    write_driver(tmp_path, "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3")
    assert gpu_names() == ["NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    ("name", "gib"),
    [("NVIDIA GeForce RTX 4090", 23.6), ("NVIDIA H100 80GB HBM3", 79.2), ("NVIDIA A100-SXM4-40GB", 39.4)],
)
def test_what_is_known_of_them(name: str, gib: float) -> None:
    gpu = known_gpu(name)
    assert gpu is not None
    assert gpu.memory_gib == gib


def test_an_unknown_one_is_not_guessed() -> None:
    assert known_gpu("NVIDIA GeForce GTX 970") is None
