"""Commits on a hub, against one on this machine: what a name means now, and what is said when it means nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.cli import run_command
from tests.support.fake_hub import TOKEN, Hub

ASK = """
import json, logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stderr)
from trials.errors import InputError
from trials.sources.hub import pin_dataset, pin_model
answers = []
for function, *arguments in json.loads(sys.argv[1]):
    try:
        answers.append(globals()[function](*arguments))
    except InputError as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""
LOAD = """
import sys
from trials.errors import DataError
from trials.sources.readers import read_rows
from trials.sources.source import parse_source
try:
    print(*[row["text"] for _, row in read_rows(parse_source(sys.argv[1]))])
except DataError as error:
    print(error)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.commit("datasets", "ann/rows", {"train.jsonl": '{"text": "old"}\n'}, tag="v1")
        hub.commit("datasets", "ann/rows", {"train.jsonl": '{"text": "new"}\n'})
        hub.commit("models", "ann/model", {"config.json": "{}"}, tag="v1")
        for kind in ("datasets", "models"):
            hub.commit(kind, "ann/closed", {"train.jsonl": "{}\n"})
        hub.gate("ann/closed")
        yield hub


def commits(hub: Hub, kind: str, name: str) -> tuple[str, str]:
    """The one with the tag, and the newest."""
    refs = hub.refs(kind, name) or {}
    return refs["v1"], refs["main"]


def ask(hub: Hub, home: Path, questions: Sequence[Sequence[str]], **extra: str) -> tuple[list[str | None], str]:
    """The answers and what was written to stderr."""
    done = run_command([sys.executable, "-c", ASK, json.dumps(questions)], **hub.environment(home, **extra))
    assert done.returncode == 0, done.stderr
    answers: list[str | None] = json.loads(done.stdout)
    return answers, done.stderr.strip()


def load(hub: Hub, home: Path, source: str, **extra: str) -> str:
    done = run_command([sys.executable, "-c", LOAD, source], **hub.environment(home, **extra))
    return done.stdout.strip()


def test_a_name_a_tag_and_a_commit_become_commits(hub: Hub, tmp_path: Path) -> None:
    old, new = commits(hub, "datasets", "ann/rows")
    assert old != new
    questions = [
        ["pin_dataset", "ann/rows"],
        ["pin_dataset", "ann/rows", "main"],
        ["pin_dataset", "ann/rows", "v1"],
        ["pin_dataset", "ann/rows", old],
        ["pin_model", "ann/model"],
    ]
    expected = [new, new, old, old, commits(hub, "models", "ann/model")[1]]
    assert ask(hub, tmp_path / "home", questions) == (expected, "")


def test_what_cannot_be_pinned_is_said_in_one_sentence(hub: Hub, tmp_path: Path) -> None:
    at = hub.endpoint
    cases = {
        ("pin_dataset", "ann/none"): (
            f"DataError: there is no data set 'ann/none' on {at}, or it's private. Check the name, or set HF_TOKEN."
        ),
        ("pin_model", "ann/rows"): (
            f"ModelError: there is no model 'ann/rows' on {at}, or it's private. Check the name, or set HF_TOKEN."
        ),
        ("pin_dataset", "ann/rows", "v9"): (
            f"DataError: the data set 'ann/rows' has no revision 'v9'. "
            f"Give a branch, tag or commit that {at}/datasets/ann/rows lists."
        ),
        ("pin_dataset", "ann/closed"): (
            f"DataError: the data set 'ann/closed' is gated. "
            f"Accept its licence on {at}/datasets/ann/closed, and set HF_TOKEN to a token of that account."
        ),
        ("pin_model", "ann/closed"): (
            f"ModelError: the model 'ann/closed' is gated. "
            f"Accept its licence on {at}/ann/closed, and set HF_TOKEN to a token of that account."
        ),
    }
    assert ask(hub, tmp_path / "home", list(cases))[0] == list(cases.values())


def test_a_token_opens_a_gated_repository(hub: Hub, tmp_path: Path) -> None:
    newest = (hub.refs("models", "ann/closed") or {})["main"]
    assert ask(hub, tmp_path / "home", [["pin_model", "ann/closed"]], HF_TOKEN=TOKEN) == ([newest], "")


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as gone:
        pass
    answers, _ = ask(gone, tmp_path / "home", [["pin_model", "ann/model"]])
    assert answers[0] is not None
    assert answers[0].startswith(f"ModelError: {gone.endpoint} can't be reached for the model 'ann/model' (")
    assert "with HF_HUB_OFFLINE=1, what was downloaded before is used." in answers[0]


def test_offline_the_cache_says_it(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    old, new = commits(hub, "datasets", "ann/rows")
    everything = [["pin_dataset", "ann/rows"], ["pin_dataset", "ann/rows", old], ["pin_dataset", "ann/rows", new]]
    answers, warning = ask(hub, home, everything[:1], HF_HUB_OFFLINE="1")
    assert answers == [None]
    assert warning.startswith("offline, and ann/rows isn't in the cache")
    assert load(hub, home, f"ann/rows@{old}") == "old"
    assert ask(hub, home, everything, HF_HUB_OFFLINE="1")[0] == [old, old, None]
    assert load(hub, home, "ann/rows") == "new"
    hub.requests.clear()
    assert ask(hub, home, everything, HF_HUB_OFFLINE="1")[0] == [new, old, new]
    assert hub.requests == []


def test_offline_rows_of_another_commit_are_refused(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    old, new = commits(hub, "datasets", "ann/rows")
    assert load(hub, home, f"ann/rows@{old}") == "old"
    assert load(hub, home, f"ann/rows@{old}", HF_HUB_OFFLINE="1") == "old"
    assert load(hub, home, f"ann/rows@{new}", HF_HUB_OFFLINE="1") == (
        f"offline, and the cache has another commit of the data set 'ann/rows' than {new}. "
        "Load it once with network, or give the revision that the cache has."
    )


def test_a_csv_file_of_the_hub_is_read_as_a_local_one(hub: Hub, tmp_path: Path) -> None:
    first = hub.commit("datasets", "ann/table", {"data/train.csv": "text,n\n007,1\nNA,2\n"})
    hub.commit("datasets", "ann/table", {"data/train.csv": "text,n\n008,1\n"})
    assert load(hub, tmp_path / "home", "ann/table:data/train.csv") == "008"
    assert load(hub, tmp_path / "home", f"ann/table@{first}:data/train.csv") == "007 NA"
    assert load(hub, tmp_path / "home", f"ann/table@{first}:data/train.csv", HF_HUB_OFFLINE="1") == "007 NA"
    assert "can't load 'ann/table:gone.csv' from the hub" in load(hub, tmp_path / "home", "ann/table:gone.csv")
