"""Whatever is wrong with what a person gives: exit code 2, a sentence that says it, and nothing started."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search import main
from tests.commands import ROOT, environment

RECIPE = "extends: demo\ndata: {train: train.jsonl, eval: eval.jsonl, test: null}\n"
RUN = ["recipe.yaml"]


def _row(number: int, **change: Any) -> str:
    row = {
        "id": f"r{number}",
        "premise": f"Ann is number {number}.",
        "hypothesis": "Ann is.",
        "thought_process": "step 1: yes.",
        "label": 1,
    }
    return json.dumps({**row, **change}) + "\n"


FILES = {
    "recipe.yaml": RECIPE,
    "train.jsonl": "".join(_row(n) for n in range(4)),
    "eval.jsonl": "".join(_row(n) for n in range(10, 13)),
}


@dataclass(frozen=True)
class Case:
    """Arguments after `--out out`, files beside the usual ones, and what has to be said."""

    says: str
    arguments: list[str] = field(default_factory=lambda: RUN)
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)


def _set(*assignments: str) -> list[str]:
    return [*RUN, "--set", *assignments]


def _recipe(text: str | bytes) -> dict[str, str | bytes]:
    return {"recipe.yaml": text if isinstance(text, bytes) else RECIPE + text}


def _train(line: str) -> dict[str, str | bytes]:
    return {"train.jsonl": _row(0) + line}


CASES = {
    "unknown recipe": Case("unknown recipe 'dem'; did you mean 'demo'? Known recipes: demo", ["dem"]),
    "no recipe file": Case("no recipe file night.yaml. Give the path of a YAML file that exists.", ["night.yaml"]),
    "broken YAML": Case("recipe.yaml is no YAML: while", files=_recipe("space: {a: [1")),
    "recipe in another encoding": Case("recipe.yaml is not UTF-8 text", files=_recipe(b"\xff\xfe")),
    "recipe that is a list": Case("must hold a mapping of settings, not list", files=_recipe(b"- 1\n")),
    "extends what isn't there": Case("no recipe file", files=_recipe(b"extends: gone.yaml\n")),
    "extends itself": Case("extends itself by way of", files=_recipe(b"extends: recipe.yaml\n")),
    "unknown section": Case("unknown key 'serach'; the nearest", files=_recipe("serach: {budget: 1h}\n")),
    "unknown key": Case(
        "unknown key 'learning_rat'; the nearest known one is 'hyperparameters.learning_rate'",
        _set("learning_rat=1e-4"),
    ),
    "unknown key in a file": Case(
        "unknown key 'search.budgit'; the nearest known one is 'search.budget'",
        files=_recipe("search: {budgit: 1h}\n"),
    ),
    "unknown dimension": Case(
        "unknown key 'space.lora_rang'; the nearest known one is 'space.lora_rank'",
        files=_recipe("space: {lora_rang: {choices: [4]}}\n"),
    ),
    "unknown key in the environment": Case(
        "ORCHESTRATOR__SEARCH__BUDGIT: unknown key 'search.budgit'", environ={"ORCHESTRATOR__SEARCH__BUDGIT": "5m"}
    ),
    "bad value in the environment": Case(
        "search.budget='soon' (from environment (ORCHESTRATOR__SEARCH__BUDGET)) is not allowed",
        environ={"ORCHESTRATOR__SEARCH__BUDGET": "soon"},
    ),
    "wrong type": Case(
        "hyperparameters.learning_rate='fast' (from --set) is not allowed: Input should be a valid number",
        _set("learning_rate=fast"),
    ),
    "yes for a number": Case("lora_rank=True (from --set) is not allowed: Input should be", _set("lora_rank=true")),
    "a fraction for a count": Case("lora_rank=8.5 (from --set) is not allowed: Input should", _set("lora_rank=8.5")),
    "not finite": Case("learning_rate=nan (from --set) is not allowed", _set("learning_rate=.nan")),
    "out of bounds": Case("learning_rate=7 (from --set) is not allowed: Input should be less", _set("learning_rate=7")),
    "not one of a few": Case("is not allowed: Input should be 'nf4' or 'none'", _set("quantization=int3")),
    "range upside down": Case(
        "range upside down: low is 0.1 and high is 0.01; swap them",
        files=_recipe("space: {learning_rate: {low: 0.1, high: 0.01}}\n"),
    ),
    "logarithm of zero": Case(
        "a logarithmic range needs low above 0, not 0",
        files=_recipe("space: {learning_rate: {low: 0, high: 0.1, log: true}}\n"),
    ),
    "nothing to choose": Case(
        "space.lora_rank.choices=[] (from recipe.yaml) is not allowed",
        files=_recipe("space: {lora_rank: {choices: []}}\n"),
    ),
    "range beyond the bounds": Case(
        "space.lora_dropout: lora_dropout=1.5 is not allowed",
        files=_recipe("space: {lora_dropout: {low: 0.0, high: 1.5}}\n"),
    ),
    "choice that isn't allowed": Case(
        "space.scheduler: scheduler='cosin' is not allowed",
        files=_recipe("space: {scheduler: {choices: [cosine, cosin]}}\n"),
    ),
    "space that is no mapping": Case("space=5 (from recipe.yaml) is not allowed", files=_recipe("space: 5\n")),
    "start outside the space": Case(
        "start.mine: lora_rank=5 lies outside space.lora_rank; widen the space",
        files=_recipe("start: {mine: {lora_rank: 5, lora_alpha: 32}}\n"),
    ),
    "start with an unknown hyperparameter": Case(
        "start.mine: unknown hyperparameter 'lora_rang'; known are", files=_recipe("start: {mine: {lora_rang: 5}}\n")
    ),
    "two lengths": Case("give exactly one of epochs and train_tokens", _set("epochs=2")),
    "no length": Case("give exactly one of epochs and train_tokens", _set("train_tokens=null")),
    "two lengths by the space": Case(
        "space.epochs: give exactly one of epochs and train_tokens",
        files=_recipe("space: {epochs: {low: 1, high: 2}}\n"),
    ),
    "set without a value": Case("--set 'learning_rate' is not of the form key=value", _set("learning_rate")),
    "set without a key": Case("--set '=1' is not of the form key=value", _set("=1")),
    "set to what is no YAML": Case("--set learning_rate is no YAML", _set("learning_rate=[1")),
    "no duration": Case("'9 lives' is no duration. Write numbers with units", [*RUN, "--budget", "9 lives"]),
    "no unit": Case("'9' is no duration. Write numbers with units d, h, m or s", [*RUN, "--budget", "9"]),
    "for ever": Case("is longer than 1000 days", [*RUN, "--budget", "999999999d"]),
    "no time of day": Case("--until '25:00' is no time of day. Write hours and minutes", [*RUN, "--until", "25:00"]),
    "shorter than its reserve": Case("a budget of 30s is too short: search.reserve keeps", [*RUN, "--budget", "30s"]),
    "no trials": Case("search.trials=0", [*RUN, "--trials", "0"]),
    "negative GPUs": Case("--gpus-per-trial -1 is negative. Give 0 or 1.", [*RUN, "--gpus-per-trial", "-1"]),
    "a GPU where there is none": Case(
        "--gpus-per-trial 1: this machine has no NVIDIA GPU. Give 0", [*RUN, "--gpus-per-trial", "1"]
    ),
    "empty budget": Case("'None' is no duration", [*RUN, "--budget", ""]),
    "unknown target module": Case(
        "target_modules nope not in the base model. Allowed: down_proj, gate_proj, k_proj",
        _set("target_modules=[q_proj, nope]"),
    ),
    "unknown target module in the space": Case(
        "target_modules nope not in the base model",
        _set("space.target_modules={choices: [[q_proj, k_proj, v_proj, o_proj], [nope]]}"),
    ),
    "two GPUs": Case("--gpus-per-trial 2: a trial runs on one GPU so far", [*RUN, "--gpus-per-trial", "2"]),
    "no such model": Case("there is no tokenizer_config.json in it. Give a folder", _set("model.name=./gone")),
    "no such model on the hub": Case("can't load the tokenizer of 'nobody/nothing'", _set("model.name=nobody/nothing")),
    "no data file": Case("gone.jsonl. Give the path of a JSON Lines file that exists.", _set("data.train=gone.jsonl")),
    "empty file": Case("train.jsonl has no rows. Give a JSON Lines file", files={"train.jsonl": "\n"}),
    "one eval row": Case("eval.jsonl: only one row can be used", files={"eval.jsonl": _row(10)}),
    "data in another encoding": Case("train.jsonl is not UTF-8 text", files={"train.jsonl": b'{"id": "\xe9"}\n'}),
    "line that is no JSON": Case("line 2: no JSON (Expecting value at column 1)", files=_train("rubbish\n")),
    "line that is no object": Case("line 2: a JSON list, not an object", files=_train("[1]\n")),
    "missing field": Case("line 2: field 'label' is missing (the row has: id, a)", files=_train('{"a": 1}\n')),
    "empty prompt": Case("line 2: field 'premise' is empty", files=_train(_row(1, premise=" "))),
    "empty completion": Case("line 2: field 'thought_process' is empty", files=_train(_row(1, thought_process=""))),
    "field of another type": Case("line 2: field 'premise' is int, not text", files=_train(_row(1, premise=5))),
    "label not allowed": Case("line 2: field 'label' is 2, not one of 0, 1", files=_train(_row(1, label=2))),
    "true for a label": Case("line 2: field 'label' is True, not one of 0, 1", files=_train(_row(1, label=True))),
    "text for a label": Case("line 2: field 'label' is '1', not one of 0, 1", files=_train(_row(1, label="1"))),
    "end of sequence in a text": Case(
        "row r1: its completion contains '</s>'", files=_train(_row(1, thought_process="step </s> 1"))
    ),
    "rows too long": Case(
        "train.jsonl: 1 of 2 rows are longer than data.max_length_tokens=128 (the longest has",
        _set("max_length_tokens=128"),
        files=_train(_row(1, thought_process="yes " * 200)),
    ),
    "eval rows that are train rows": Case(
        "2 of 3 rows of {tmp}/eval.jsonl are also rows of {tmp}/train.jsonl (first: r2, r3)",
        files={"eval.jsonl": _row(2) + _row(3) + _row(9)},
    ),
    "test rows that are train rows": Case(
        "1 of 2 rows of {tmp}/test.jsonl are also rows of {tmp}/train.jsonl (first: r3)",
        _set("data.test=test.jsonl"),
        files={"test.jsonl": _row(3) + _row(20)},
    ),
    "test rows that are eval rows": Case(
        "1 of 2 rows of {tmp}/test.jsonl are also rows of {tmp}/eval.jsonl (first: r10)",
        _set("data.test=test.jsonl"),
        files={"test.jsonl": _row(10) + _row(20)},
    ),
    "folder of another search": Case("out holds another search. Go on with it by", files={"out/search.json": "{}"}),
    "folder with something in it": Case("out is not empty. Give a new or empty --out folder.", files={"out/a": "b"}),
    "folder that is a file": Case("can't write to out: ", files={"out": "b"}),
}


def _put(files: Mapping[str, str | bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(
    case: Case, in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _put({**FILES, **case.files}, in_tmp_path)
    for name, value in case.environ.items():
        monkeypatch.setenv(name, value)
    before = _everything(in_tmp_path)
    assert main([*case.arguments, "--out", "out"]) == 2
    said = capsys.readouterr()
    assert case.says.format(tmp=in_tmp_path) in said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert _everything(in_tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "gone"], "gone holds no search: there is no search.json in it. Give a run folder."),
        (["--resume", "gone", "--set", "learning_rate=1e-4"], "--resume goes on with what the run folder says"),
        (["demo", "--resume", "gone"], "--resume goes on with what the run folder says: leave out SPACE"),
        (["--resume", "gone", "--out", "there"], "--resume goes on with what the run folder says"),
        (["--resume", "broken"], "broken/search.json is no JSON"),
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
def test_it_is_said_soon_and_without_ray(broken: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import sys; from orchestrator.search import main; code = main(sys.argv[1:]);"
        "print([name for name in ('ray', 'optuna', 'peft', 'trl', 'bitsandbytes') if name in sys.modules]);"
        "sys.exit(code)"
    )
    assignments = [f"{key}={value}" for key, value in broken.items()]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--out", str(tmp_path / "out"), "--set", *assignments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - started < 10
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "out").exists()
