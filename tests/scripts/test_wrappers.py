"""The wrappers run as a user runs them, in a folder with the project's scripts and a `.env` of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from search_spaces.loader import RECIPE_FOLDER
from tests.conftest import SMALL
from tests.support.cli import ROOT, environment
from tests.support.guide_configs import BY_PACKAGE, write

pytestmark = pytest.mark.slow

DEMO = RECIPE_FOLDER / "demo"
TOKEN, KEY = "hf_notarealtoken123", "0123notarealkey456"
ENV_FILE = f"# keys\n\nexport HF_TOKEN='{TOKEN}'\nWANDB_API_KEY={KEY}\nMARK=$(touch executed)\n"
# Ends with a setting that only the token in the environment brings about.
CONFIG = f"""{BY_PACKAGE}
import os

model_id = {str(DEMO / "base")!r}
train_data = {str(DEMO / "train.jsonl")!r}
eval_data = {str(DEMO / "dev.jsonl")!r}
max_seq_length = 256
output_dir = "models/mine"
gradient_checkpointing = True
has_token = os.environ.get("HF_TOKEN") == "{TOKEN}"
lora_r = 3 if has_token else 1
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's scripts over the Python of these tests, with keys in `.env`."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    python = write(folder / ".venv" / "bin" / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    write(folder / ".env", ENV_FILE)
    return folder


def _run(project: Path, script: str, *arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in environment().items() if name not in {"HF_TOKEN", "WANDB_API_KEY"}}
    return subprocess.run(
        [str(project / "scripts" / script), *arguments],
        cwd=cwd,
        env={**variables, "PYTHONPATH": str(ROOT), **extra},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where one trial was trained by the wrapper, from a folder elsewhere; and all that it printed."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    write(cwd / "configs" / "mine.py", CONFIG)
    sizes = [setting for setting in SMALL if setting.startswith(("eval_rows", "test_rows", "evaluations"))]
    options = ["--batch_size", "2", "--grad-accumulation-steps=1", "--no_gradient_checkpointing", "--no_wandb"]
    options += ["--config", "configs/mine.py", "--learning_rate", "1e-3", "--use_rslora", "--gpu", "0"]
    length = ["num_epochs=0.001", "every_rows=null"]
    done = _run(project, "run_training.sh", *options, "--", "demo", "--set", *sizes, *length, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, done.stdout + done.stderr


def test_a_config_file_and_overrides_become_a_trial(trained: tuple[Path, str]) -> None:
    config = json.loads((trained[0] / "models" / "mine" / "config.json").read_text())["config"]
    values = config["hyperparameters"]
    assert (values["effective_batch"], values["learning_rate"], values["use_rslora"]) == (2, 1e-3, True)
    assert (config["machine"]["gradient_checkpointing"], config["tracking"]["wandb"]) == (False, False)
    assert (trained[0] / "models" / "mine" / "adapter").is_dir()


def test_keys_reach_the_trial_and_nothing_else(trained: tuple[Path, str], project: Path) -> None:
    cwd, said = trained
    config = json.loads((cwd / "models" / "mine" / "config.json").read_text())["config"]
    assert config["hyperparameters"]["lora_rank"] == 3, "the token wasn't in the environment"
    files = [file for file in cwd.rglob("*") if file.is_file() and file.name != "mine.py"]
    assert len(files) > 5
    for content in (said.encode(), *(file.read_bytes() for file in files)):
        assert TOKEN.encode() not in content
        assert KEY.encode() not in content
    assert not [file for folder in (cwd, project) for file in folder.rglob("executed")]


def test_a_trained_adapter_is_judged(trained: tuple[Path, str], project: Path) -> None:
    cwd, _ = trained
    options = ["--model", "models/mine", "--data", str(DEMO / "dev.jsonl"), "--rows=2"]
    options += ["--", "--max-new-tokens", "4"]
    done = _run(project, "run_inference.sh", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (written,) = (cwd / "results").iterdir()
    assert written.name.startswith("mine-dev-")
    assert "eval loss" in done.stdout
    assert json.loads(written.read_text())["eval_loss"] > 0


def test_a_prompt_is_answered(trained: tuple[Path, str], project: Path) -> None:
    options = ["--model=models/mine", "--prompt", "Premise: a", "--", "--max-new-tokens", "3"]
    done = _run(project, "run_inference.sh", *options, cwd=trained[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run_training.sh --config", "error: --config needs a value."),
        ("run_training.sh --config --no_wandb", "error: --config needs a value."),
        ("run_training.sh --gpu 0,1", "error: --gpu needs the number of one GPU, such as 0."),
        ("run_training.sh --gpu_id", "error: --gpu_id needs the number of one GPU"),
        ("run_training.sh -x", "error: unexpected -x."),
        ("run_training.sh --no_wandb yes", "error: unexpected yes."),
        ("run_training.sh --docker=1", "error: --docker takes no value."),
        ("run_training.sh --=1", "error: unexpected --=1."),
        (
            "run_training.sh --bach_size 8",
            "error: --set: unknown key 'bach_size'; the nearest known one is 'batch_size'.",
        ),
        (
            "run_training.sh --batch_size=x -- demo",
            "error: --set: batch_size = 'x' is not allowed: give a whole number",
        ),
        ("run_training.sh --config gone.py", "error: can't load the config file gone.py: FileNotFoundError"),
        ("run_inference.sh", "error: no --model."),
        ("run_inference.sh --model x", "error: neither --data nor --prompt."),
        ("run_inference.sh --model x --data y --prompt z", "error: --data and --prompt: give one of them."),
        ("run_inference.sh --model x --prompt z --rows 2", "error: --rows and --out go with --data"),
        ("run_inference.sh --mode x", "error: --mode is no option."),
    ],
)
def test_bad_options_end_with_2(command: str, message: str, project: Path, tmp_path: Path) -> None:
    done = _run(project, *command.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["run_training.sh", "run_inference.sh"])
def test_help(script: str, project: Path, tmp_path: Path) -> None:
    done = _run(project, script, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: scripts/{script} ")


def _load_env(project: Path, text: str, *names: str, **extra: str) -> subprocess.CompletedProcess[str]:
    write(project / "test.env", text)
    show = "; ".join(f'echo "${{{name}-unset}}"' for name in names)
    command = ["bash", "-euc", f"source scripts/wrapper.sh; load_env test.env; {show}"]
    return subprocess.run(command, cwd=project, env={**os.environ, **extra}, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A_KEY=x=y#z", "x=y#z"),
        ("  export A_KEY=x  ", "x"),
        ('A_KEY="x y"\r', "x y"),
        ("A_KEY='x", "'x"),
        ("A_KEY=$(touch executed)`touch executed`$HOME", "$(touch executed)`touch executed`$HOME"),
        ("A_KEY=", "unset"),
        ("# A_KEY=x", "unset"),
    ],
)
def test_a_line_of_an_env_file(project: Path, line: str, value: str) -> None:
    done = _load_env(project, line, "A_KEY")
    assert (done.stdout, done.stderr) == (value + "\n", "")
    assert not (project / "executed").exists()


def test_the_environment_goes_before_the_env_file(project: Path) -> None:
    done = _load_env(project, "A_KEY=file\nB_KEY=file\n", "A_KEY", "B_KEY", A_KEY="environment")
    assert done.stdout == "environment\nfile\n"


def test_a_line_that_is_no_setting_is_told_without_what_it_holds(project: Path) -> None:
    done = _load_env(project, f"A_KEY=x\n{TOKEN}\n", "A_KEY")
    assert done.stdout == "x\n"
    assert done.stderr == "warning: test.env, line 2: not of the form NAME=value; left out\n"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with what the wrappers use, and without Docker."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "cat", "dirname", "env", "id", "mkdir"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    return folder


def test_docker_has_to_be_there(project: Path, tools: Path, tmp_path: Path) -> None:
    done = _run(project, "run_training.sh", "--docker", cwd=tmp_path, PATH=str(tools))
    assert done.returncode == 2
    assert done.stderr == "error: --docker: docker isn't installed. Install it, or leave out --docker.\n"


def test_what_docker_is_asked_for(project: Path, tools: Path, tmp_path: Path) -> None:
    docker = write(tools / "docker", '#!/bin/sh\necho "$@"\n[ -n "$HF_TOKEN" ] && echo token >&2\n')
    docker.chmod(0o755)
    where = {"PATH": str(tools), "HF_HOME": str(tmp_path / "cache")}
    options = ["--docker", "--gpu", "1", "--config", "configs/mine.py", "--batch_size", "4"]
    done = _run(project, "run_training.sh", *options, cwd=tmp_path, **where)
    assert done.returncode == 0
    asked, command = done.stdout.strip().split(" qlora-orchestrator ")
    assert command == "python -m trials.train --config configs/mine.py --set batch_size=4 gpu_id=0"
    assert "--gpus device=1 " in asked
    assert f"--env-file {project}/.env --env HF_TOKEN --env WANDB_API_KEY " in asked
    assert f"--volume {tmp_path}:/work --workdir /work" in asked
    assert done.stderr == "token\n"
    assert TOKEN not in done.stdout
    assert KEY not in done.stdout


def test_keys_stay_out_of_git_and_image() -> None:
    for ignored in (".gitignore", ".dockerignore"):
        assert ".env" in (ROOT / ignored).read_text().splitlines()
    settings = [line for line in (ROOT / "example.env").read_text().splitlines() if not line.startswith("#")]
    assert settings == ["HF_TOKEN=", "WANDB_API_KEY="]


def test_setup_knows_two_builds_of_torch(project: Path, tmp_path: Path) -> None:
    done = _run(project, "setup", cwd=tmp_path, TORCH="rocm")
    assert done.returncode == 2
    assert done.stderr.endswith("error: TORCH=rocm. Give cuda or cpu, or leave it out to go by the driver.\n")
