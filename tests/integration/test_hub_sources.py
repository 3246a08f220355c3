"""A whole search on a base model and data sets of the hub: what they mean is fixed when it begins."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset

from search_spaces.layers import RECIPE_FOLDER
from tests.support.cli import run_command
from tests.support.fake_hub import MAIN, Hub

pytestmark = pytest.mark.slow

DEMO = RECIPE_FOLDER / "demo"
RECIPE = """
extends: demo
model: {name: ann/model}
data: {train: "ann/rows:train[:200]", eval: "ann/rows:test", test: "ann/table:test[:8]", eval_rows: 0.05}
hyperparameters: {train_tokens: 4000, learning_rate: 3e-3}
space: {effective_batch: {choices: [4, 8]}}
start: {usual: {effective_batch: 4, learning_rate: 3e-3}}
evaluation: {evaluations: 1}
search: {dashboard: false, samples: 1, reserve: 20s, trials: 1, rungs: 0, concurrent_trials: 1}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    table = tmp_path_factory.mktemp("table") / "test.parquet"
    Dataset.from_json(str(DEMO / "test.jsonl"), cache_dir=str(table.parent)).to_parquet(table)
    with Hub(tmp_path_factory.mktemp("hub")) as served:
        served.commit("models", "ann/model", {path.name: path for path in (DEMO / "base").iterdir()})
        served.commit("datasets", "ann/rows", {"train.jsonl": DEMO / "train.jsonl", "test.jsonl": DEMO / "dev.jsonl"})
        served.commit("datasets", "ann/table", {"data/test-00000-of-00001.parquet": table})
        yield served


def _newest(hub: Hub, kind: str, name: str) -> str:
    return (hub.refs(kind, name) or {})[MAIN]


def _command(folder: Path, *options: str) -> list[str]:
    (folder / "mine.yaml").write_text(RECIPE)
    return [sys.executable, "-m", "orchestrator.search", str(folder / "mine.yaml"), *options]


def test_the_plan_says_which_commits_were_meant(hub: Hub, tmp_path: Path) -> None:
    done = run_command(_command(tmp_path, "--plan"), **hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    rows = _newest(hub, "datasets", "ann/rows")
    assert f"data.train = 'ann/rows@{rows}:train[:200]'  (the hub, when the search began)" in done.stdout
    assert f"model.revision = '{_newest(hub, 'models', 'ann/model')}'  (the hub, when the search began)" in done.stdout
    assert "train rows: 200 of " in done.stdout
    assert "eval rows: 27 of " in done.stdout


def test_a_search_goes_on_with_what_it_began_with(hub: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = hub.environment(tmp_path / "home")
    done = run_command(_command(tmp_path, "--budget", "3m", "--out", str(run)), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    before = _newest(hub, "datasets", "ann/rows")
    search = json.loads((run / "search.json").read_text())
    assert search["recipe"]["data"]["eval"] == f"ann/rows@{before}:test"
    assert search["data"]["train"]["rows"] == 200
    adapter = json.loads((run / "export/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "ann/model"
    assert adapter["revision"] == _newest(hub, "models", "ann/model")

    # Somebody pushes other rows: a search that goes on doesn't see them.
    hub.commit("datasets", "ann/rows", {"train.jsonl": DEMO / "dev.jsonl", "test.jsonl": DEMO / "train.jsonl"})
    again = run_command(
        [sys.executable, "-m", "orchestrator.search", "--resume", str(run), "--budget", "2m", "--plan"], **environment
    )
    assert again.returncode == 0, again.stderr
    assert f"data.train = 'ann/rows@{before}:train[:200]'" in again.stdout
