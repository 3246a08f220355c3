"""What the names of data sources mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from trials.errors import DataError
from trials.sources.source import DataSource, bare_name, parse_source, with_path


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/a/rows.jsonl", DataSource(path=Path("/a/rows.jsonl"))),
        ("data/finetune/train.jsonl", DataSource(path=Path("data/finetune/train.jsonl"))),
        ("rows.csv[:800]", DataSource(path=Path("rows.csv"), stop=800)),
        ("rows.parquet[800:1000]", DataSource(path=Path("rows.parquet"), start=800, stop=1000)),
        ("/a/rows[5:]", DataSource(path=Path("/a/rows"), start=5)),
        ("owner/name", DataSource(hub_name="owner/name")),
        ("owner/name:test_sft", DataSource(hub_name="owner/name", split="test_sft")),
        ("owner/name:train[:800]", DataSource(hub_name="owner/name", stop=800)),
        ("owner/name@1f2e#main:test", DataSource(hub_name="owner/name", revision="1f2e", config="main", split="test")),
        ("owner/name:data/train.jsonl", DataSource(hub_name="owner/name", split="data/train.jsonl")),
    ],
)
def test_a_name_says_what_is_meant(text: str, source: DataSource) -> None:
    assert parse_source(text) == source
    assert parse_source(source.text) == source


def test_what_lies_there_is_a_file(in_tmp_path: Path) -> None:
    (in_tmp_path / "owner").mkdir()
    (in_tmp_path / "owner/name").touch()
    assert parse_source("owner/name").path == Path("owner/name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows", r"data source 'rows' is not understood\. Give a file that ends in \.jsonl, "),
        ("a/b/c", r"data source 'a/b/c' is not understood"),
        ("owner/name:train[:5%]", r"'owner/name:train\[:5%\]' is not understood"),
        ("rows.csv[5:5]", r"the slice holds no rows\. Give its end above its start"),
    ],
)
def test_what_isn_t_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_source(text)


def test_a_fixed_commit_is_part_of_the_name() -> None:
    assert parse_source("owner/name:test[:9]").at("1f2e").text == "owner/name@1f2e:test[:9]"


def test_a_path_is_replaced_under_its_slice() -> None:
    assert with_path("rows.csv[:5]", Path("/a/rows.csv")) == "/a/rows.csv[:5]"
    assert with_path("rows.csv", Path("/a/rows.csv")) == "/a/rows.csv"
    assert bare_name("rows.csv[:5]") == "rows.csv"
