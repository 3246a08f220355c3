"""Whatever is wrong with what a person gives: exit code 2, one message that says it, and nothing started."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.search import main
from search_spaces.layers import RECIPE_FOLDER
from tests.support.cli import ROOT, environment
from trials import evaluate, generate, train

BASE = RECIPE_FOLDER / "demo/base"
CASES: Mapping[str, Mapping[str, Any]] = yaml.safe_load((ROOT / "tests/integration/bad_input.yaml").read_text())
COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "search": lambda arguments: main([*arguments, "--out", "out"]),
    "train": lambda arguments: train.main([*arguments, "--out", "out"]),
    "evaluate": evaluate.main,
    "generate": generate.main,
}
RUN = ["recipe.yaml"]


def _row(number: int) -> str:
    row = {
        "id": f"r{number}",
        "premise": f"Ann is number {number}.",
        "hypothesis": "Ann is.",
        "thought_process": "step 1: yes.",
        "label": 1,
    }
    return json.dumps(row) + "\n"


FILES = {
    "recipe.yaml": "extends: demo\ndata: {train: train.jsonl, eval: eval.jsonl, test: null}\n",
    "train.jsonl": "".join(_row(n) for n in range(4)),
    "eval.jsonl": "".join(_row(n) for n in range(10, 13)),
}


def _set(*requests: str) -> list[str]:
    return [*RUN, "--set", *requests]


def _message(says: str, folder: Path) -> re.Pattern[str]:
    """The whole of what must stand on standard error."""
    text = says.replace("{tmp}", str(folder)).replace("{base}", str(BASE))
    return re.compile("error: " + ".*".join(map(re.escape, text.split("…"))) + "\n")


def _put(files: Mapping[str, str | bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_there_are_enough() -> None:
    assert len(CASES) >= 140


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(
    case: Mapping[str, Any], in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _put({**FILES, **case.get("files", {})}, in_tmp_path)
    for name, value in case.get("environ", {}).items():
        monkeypatch.setenv(name, value)
    before = _everything(in_tmp_path)
    arguments = shlex.split(case.get("arguments", "recipe.yaml"))
    command = COMMANDS[case.get("command", "search")]
    assert command([argument.replace("{base}", str(BASE)) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert _message(case["says"], in_tmp_path).fullmatch(said.err), said.err
    assert _everything(in_tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "gone"], "gone holds no search: there is no search.json in it. Give a run folder."),
        (["--resume", "gone", "--set", "learning_rate=1e-4"], "--resume goes on with what the run folder says"),
        (["demo", "--resume", "gone"], "--resume goes on with what the run folder says: leave out SPACE"),
        (["--resume", "gone", "--out", "there"], "--resume goes on with what the run folder says"),
        (["--resume", "broken"], "broken/search.json can't be read: it is no JSON"),
    ],
)
def test_nothing_to_resume(
    arguments: list[str], says: str, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _put({"broken/search.json": "{"}, in_tmp_path)
    before = _everything(in_tmp_path)
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
    assert _everything(in_tmp_path) == before


def test_everything_wrong_with_a_recipe_is_said_at_once(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _put(FILES, in_tmp_path)
    assert main(_set("learning_rate=7", "lora_rank=0", "search.trials=many")) == 2
    said = capsys.readouterr().err
    assert all(key in said for key in ("learning_rate=7", "lora_rank=0", "search.trials='many'"))


@pytest.mark.parametrize("broken", [{"learning_rate": "fast"}, {"data.train": "gone.jsonl"}])
def test_it_is_said_before_anything_slow_is_loaded(broken: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import sys; from orchestrator.search import main; code = main(sys.argv[1:]);"
        "print([name for name in ('ray', 'optuna', 'peft', 'trl', 'bitsandbytes') if name in sys.modules]);"
        "sys.exit(code)"
    )
    requests = [f"{key}={value}" for key, value in broken.items()]
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--out", str(tmp_path / "out"), "--set", *requests],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "out").exists()
