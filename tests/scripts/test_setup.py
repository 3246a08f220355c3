"""scripts/setup with real environments and real pip, on a project that needs nothing; and what it would install."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.cli import ROOT

pytestmark = pytest.mark.slow

# A project's build backend of its own, so that nothing is fetched: it makes an editable install of nothing.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "nothing"
version = "1"
"""
BACKEND = """
import zipfile

def build_editable(folder, config=None, metadata=None):
    name = "nothing-1-py3-none-any.whl"
    about = {"METADATA": "Metadata-Version: 2.1\\nName: nothing\\nVersion: 1\\n", "RECORD": "",
             "WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"}
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for file, text in about.items():
            wheel.writestr(f"nothing-1.dist-info/{file}", text)
    return name
"""
NOISY = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"
ADDED = {"triton", "cuda-bindings", "cuda-pathfinder"}
"""What torch's CUDA build needs beside NVIDIA's libraries, whose versions it fixes itself."""
BOUNDED = ("bitsandbytes", "optuna", "peft", "ray", "transformers", "trl")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def make_project(tmp_path: Path) -> Path:
    """A project with these scripts, on whose PATH one Python runs; the others are as pyenv's, switched off."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", project / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (project / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (project / "backend.py").write_text(BACKEND, encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    for version in ("3.11", "3.12", "3.13"):
        path = commands / f"python{version}"
        path.write_text(NOISY, encoding="utf-8")
        path.chmod(0o755)
    (commands / "python3").symlink_to(Path(sys.executable).resolve())
    return project


def setup(project: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "scripts" / "setup"], env=environ(project, **extra), capture_output=True, text=True, check=False
    )


def environ(project: Path, **extra: str) -> dict[str, str]:
    path = f"{project.parent / 'bin'}:/usr/bin:/bin"
    home = {"HOME": str(project.parent), "PYENV_ROOT": str(project.parent / "pyenv")}
    return {"PATH": path, "TORCH": "cuda", "PIP_NO_INDEX": "1", **home, **extra}


def is_installed(project: Path, venv: str = ".venv") -> bool:
    listed = subprocess.check_output([project / venv / "bin" / "python", "-m", "pip", "list"], text=True)
    return "nothing" in listed and (project / venv / "installed").is_file()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that `scripts/setup` made, to be copied: making one takes ten seconds."""
    project = make_project(tmp_path_factory.mktemp("made"))
    (project / ".venv" / "bin").mkdir(parents=True)  # an earlier one was cut off at its beginning
    first = setup(project)
    assert (first.returncode, first.stderr) == (0, ""), first
    assert ".venv was cut off while it was made" in first.stdout
    assert is_installed(project)
    return project / ".venv"


@pytest.fixture
def venv(project: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, project / ".venv", symlinks=True))


def test_what_is_installed_is_not_installed_again(project: Path, venv: Path) -> None:
    done = setup(project)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (venv / "unfinished").exists()


def test_an_environment_without_pip_is_made_again(project: Path, venv: Path) -> None:
    (venv / "installed").unlink()
    (pip,) = venv.glob("lib/python*/site-packages/pip")
    shutil.rmtree(pip)
    again = setup(project)
    assert (again.returncode, again.stderr) == (0, ""), again
    assert ".venv was cut off while it was made" in again.stdout
    assert is_installed(project)


def test_what_was_killed_while_it_installed_is_made_again(project: Path, venv: Path) -> None:
    (venv / "installed").unlink()
    at_it = project / "at_it"
    (project / "backend.py").write_text(f"import time\nopen({str(at_it)!r}, 'w')\ntime.sleep(600)\n", encoding="utf-8")
    process = subprocess.Popen([project / "scripts" / "setup"], env=environ(project), start_new_session=True)
    while not at_it.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (project / "backend.py").write_text(BACKEND, encoding="utf-8")
    (venv / "half").touch()
    assert "was cut off while it was made" in setup(project).stdout
    assert is_installed(project)
    assert not (venv / "half").exists()


def test_an_error_of_pips_is_no_cut(project: Path, venv: Path) -> None:
    (venv / "installed").unlink()
    (project / "backend.py").write_text("no Python", encoding="utf-8")
    assert setup(project).returncode == 1
    (venv / "kept").touch()
    (project / "backend.py").write_text(BACKEND, encoding="utf-8")
    assert setup(project).returncode == 0
    assert (venv / "kept").exists()


def test_a_folder_that_is_somebody_elses_is_left_alone(project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "letters.txt").touch()
    done = setup(project)
    assert (done.returncode, done.stderr) == (
        2,
        "error: .venv is not a Python environment. Move it away: the project's goes there.\n",
    )
    assert (project / ".venv" / "letters.txt").exists()


def test_a_python_is_asked_for_by_its_version_and_found_in_pyenvs_folder_too(project: Path, venv: Path) -> None:
    refused = setup(project, PYTHON_VERSION="3.12")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "no Python 3.12 that runs" in refused.stderr
    found = project.parent / "pyenv" / "versions" / "3.12.9" / "bin"
    found.mkdir(parents=True)
    (found / "python3").symlink_to(Path(sys.executable).resolve())
    venv.rename(project / ".venv-3.12")
    (project / ".venv-3.12" / "installed").unlink()
    assert setup(project, PYTHON_VERSION="3.12").returncode == 0
    assert is_installed(project, ".venv-3.12")
    assert not (project / ".venv").exists()


def constraints(kind: str) -> dict[str, Version]:
    lines = (ROOT / "scripts" / f"constraints-{kind}.txt").read_text(encoding="utf-8").split()
    return {name.lower().replace("_", "-"): Version(version) for name, _, version in (x.partition("==") for x in lines)}


def dependencies() -> list[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_versions_that_are_installed_are_allowed_and_the_newest_minor_that_is(kind: str) -> None:
    fixed = constraints(kind)
    for needed in dependencies():
        version = fixed[needed.name.lower().replace("_", "-")]
        assert needed.specifier.contains(version), needed
        if needed.name in BOUNDED:
            major, minor = version.release[:2]
            assert not needed.specifier.contains(f"{major}.{minor + 1}.0"), needed
    assert {needed.name for needed in dependencies() if "<" in str(needed.specifier)} == set(BOUNDED)


def test_gpu_machines_get_the_versions_that_are_tested_on_cpus_but_for_torch() -> None:
    cpu, cuda = constraints("cpu"), constraints("cuda")
    assert {name for name in cpu.keys() | cuda.keys() if cpu.get(name) != cuda.get(name)} == {"torch"} | ADDED
    kernels = (ROOT / "scripts" / "check-kernels").read_text(encoding="utf-8")
    assert f"triton={cuda['triton']}\n" in kernels


def test_image_and_readme_name_what_is_installed() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "TORCH=cuda" in image
    assert "scripts/constraints-cuda.txt" in image
    assert (found := re.search(r"^FROM python:([\d.]+)", image, re.MULTILINE))
    assert found[1] in ("3.11", "3.12")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`scripts/constraints-{kind}.txt`" in readme for kind in ("cpu", "cuda"))


def test_these_tests_run_with_versions_that_are_allowed() -> None:
    from importlib.metadata import version

    for needed in dependencies():
        if needed.name in BOUNDED:
            assert needed.specifier.contains(version(needed.name)), needed
