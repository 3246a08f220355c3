"""The hub that tests talk to: what huggingface_hub, datasets and transformers load from it, in fresh processes."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.cli import ROOT, run_command
from tests.support.fake_hub import TOKEN, Hub

pytestmark = pytest.mark.slow

DEMO_BASE = ROOT / "search_spaces" / "demo" / "base"
LOAD = "from datasets import load_dataset; print(load_dataset({arguments}, split='train')['text'][:])"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    pq.write_table(pa.table({"text": ["parquet"]}), folder / "rows.parquet")
    with Hub(folder / "served") as hub:
        hub.commit("datasets", "ann/rows", {"train.jsonl": '{"text": "old"}\n'}, tag="v1")
        hub.commit("datasets", "ann/rows", {"train.jsonl": '{"text": "new"}\n', "README.md": "# Rows\n"})
        hub.commit("datasets", "ann/table", {"data/train-00000-of-00001.parquet": folder / "rows.parquet"})
        hub.commit("datasets", "ann/closed", {"train.jsonl": '{"text": "secret"}\n'})
        hub.gate("ann/closed")
        hub.commit("models", "ann/model", {path.name: path for path in DEMO_BASE.iterdir()})
        yield hub


def run_python(hub: Hub, home: Path, code: str, **extra: str) -> tuple[str, str]:
    """What the code printed, and the last line of what it wrote to stderr."""
    done = run_command([sys.executable, "-c", code], **hub.environment(home, **extra))
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


def test_data_sets_load_by_name_tag_and_commit(hub: Hub, tmp_path: Path) -> None:
    old = (hub.refs("datasets", "ann/rows") or {})["v1"]
    code = "; ".join(
        LOAD.format(arguments=arguments)
        for arguments in ("'ann/rows'", "'ann/rows', revision='v1'", f"'ann/rows', revision='{old}'", "'ann/table'")
    )
    printed, error = run_python(hub, tmp_path, code)
    assert printed.splitlines() == ["['new']", "['old']", "['old']", "['parquet']"], error
    assert f"GET /datasets/ann/rows/resolve/{old}/train.jsonl" in hub.requests


def test_tokenizer_and_model_load_by_name(hub: Hub, tmp_path: Path) -> None:
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "print(len(AutoTokenizer.from_pretrained('ann/model'))); "
        "print(AutoModelForCausalLM.from_pretrained('ann/model').config.model_type)"
    )
    printed, error = run_python(hub, tmp_path, code)
    assert printed.splitlines() == ["1536", "mistral"], error


def test_a_gated_data_set_needs_the_token(hub: Hub, tmp_path: Path) -> None:
    code = LOAD.format(arguments="'ann/closed'")
    printed, error = run_python(hub, tmp_path / "without", code)
    assert (printed, "gated dataset" in error) == ("", True)
    assert run_python(hub, tmp_path / "with", code, HF_TOKEN=TOKEN)[0] == "['secret']"


def test_what_is_missing_is_refused_as_the_hub_does_it(hub: Hub, tmp_path: Path) -> None:
    code = """
from huggingface_hub import HfApi, hf_hub_download
for ask in (
    lambda: HfApi().dataset_info("ann/none"),
    lambda: HfApi().model_info("ann/model", revision="v9"),
    lambda: hf_hub_download("ann/model", "absent.txt"),
    lambda: list(HfApi().list_repo_tree("ann/model", "absent")),
    lambda: HfApi().auth_check("ann/closed", repo_type="dataset"),
):
    try:
        print(ask())
    except Exception as error:
        print(type(error).__name__)
print([entry.path for entry in HfApi().list_repo_tree("ann/table", repo_type="dataset", recursive=True)])
print([entry.size > 0 for entry in HfApi().get_paths_info("ann/model", ["config.json", "no"])])
"""
    printed, error = run_python(hub, tmp_path, code)
    assert printed.splitlines() == [
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
        "RemoteEntryNotFoundError",
        "RemoteEntryNotFoundError",
        "GatedRepoError",
        "['data', 'data/train-00000-of-00001.parquet']",
        "[True]",
    ], error


def test_parts_of_files_are_served(hub: Hub) -> None:
    request = urllib.request.Request(
        f"{hub.endpoint}/ann/model/resolve/main/config.json", headers={"Range": "bytes=0-1"}
    )
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read()) == (206, (DEMO_BASE / "config.json").read_bytes()[:2])
