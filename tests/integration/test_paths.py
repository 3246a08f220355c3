"""Every character that a path can have, in every place that a path is used."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import sqlite3
from pathlib import Path

import optuna
import pytest
import yaml

from orchestrator.controller.study import StudyRecorder
from orchestrator.report.render import main as report
from orchestrator.report.render import parser as report_parser
from orchestrator.search import parser as search_parser
from orchestrator.state.run_dir import RunDir, create_run_dir
from orchestrator.storage.locations import address_of
from search_spaces.loader import load_recipe
from tests.support.report_runs import BASE, Told, new_run, write_export, write_trial
from trials.config import DataSettings, ModelSettings
from trials.data.chat_template import chat_template
from trials.errors import RunFolderError
from trials.model.loading import check_targets, load_tokenizer
from trials.records.adapter_dir import base_settings, is_adapter
from trials.sources.readers import read_rows
from trials.sources.source import parse_source
from trials.train import parser as train_parser

NAMES = (
    "plain",
    "a b",
    "My%20Drive",
    "100%",
    "why?not",
    "a?uri=true&mode=ro",
    "a#b",
    "a[1]",
    "[a-z]*",
    "{x} {{}} {SCHEMA_VERSION}",
    "ü ñ 日本 🙂",
    "it's",
    'a "quote"',
    "a\\b",
    "$HOME `x` $(x)",
    "~nobody-has-this-name",
    "a;b|c&d",
    "a@b:c",
    ":memory:",
    "-dash --flag",
    "<b>&amp;",
    "[red]a [bold]",
    "a=b,c",
    "owner",
)
MIXED = ("why?not 100%#[1] {x} ü", "it's \"&\\ -r$n `x`; ~a", "<b>&amp; [red]a [bold]")
# By number: pytest makes a folder's name of a test's own name, and that isn't what is tried here.
each_name = pytest.mark.parametrize("name", NAMES, ids=[f"name{number}" for number in range(len(NAMES))])
ROWS = [{"prompt": "one", "completion": "two"}, {"prompt": "three", "completion": "four"}]


@pytest.fixture
def folder(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    return path


@each_name
def test_the_study_lies_in_the_run_folder_and_its_url_opens_it(folder: Path) -> None:
    run = create_run_dir(folder / "run")
    optuna.create_study(study_name="search", storage=run.study_url)
    assert (run.path / "study.db").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing beside it"
    assert optuna.load_study(study_name="search", storage=run.study_url).trials == []
    sqlite3.connect(run.path / "study.db").execute("select * from studies")


def test_the_url_of_a_study_in_a_plain_folder_is_as_documented(tmp_path: Path) -> None:
    assert RunDir(Path("/data/runs/demo-2026")).study_url == "sqlite:////data/runs/demo-2026/study.db"


@pytest.mark.parametrize("name", MIXED, ids=["urls", "shells", "pages"])
def test_a_report_is_written_and_its_commands_can_be_typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(folder / "run")
    write_trial(run, BASE)
    write_trial(run, Told("0001", [2.0, 1.5]))
    write_export(run, "0001", 1.5)
    StudyRecorder(run, run.read_search().recipe, run.records(), [].append)
    assert report([str(run.path)]) == 0
    page = _commands((run.path / "report.html").read_text(encoding="utf-8"))
    assert capsys.readouterr().out == f"report: {run.path / 'report.html'}\n"
    assert ["python", "-m", "orchestrator.search", "--resume", address_of(run)] in page
    assert ["optuna-dashboard", run.study_url] in page
    assert ["python", "-m", "trials.generate", str(run.export), "--prompt", "TEXT"] in page


@each_name
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_rows_are_read_from_a_folder(folder: Path, name: str, suffix: str) -> None:
    for decoy in ("rows1", "a1", "b"):  # what a pattern would find in its place
        (folder / f"{decoy}{suffix}").write_text("decoy")
    file = folder / f"{name}{suffix}"
    _write(file)
    recipe = _recipe(f"data.train={json.dumps(str(file))}", f"data.eval={json.dumps(f'{file}[1:]')}")
    assert [row["completion"] for _, row in read_rows(parse_source(recipe.train))] == ["two", "four"]  # type: ignore[index]
    assert [row["completion"] for _, row in read_rows(parse_source(recipe.eval))] == ["four"]  # type: ignore[index]


@each_name
def test_a_path_from_the_recipes_folder_is_found_by_its_name(folder: Path, name: str) -> None:
    _write(folder / f"{name}.jsonl")
    said = {"extends": "demo", "data": {"train": f"{name}.jsonl", "eval": f"{name}.jsonl[:1]", "test": None}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(said, allow_unicode=True), encoding="utf-8")
    data = load_recipe(str(folder / "recipe.yaml"), environ={}).recipe.data
    assert (data.train, data.eval) == (str(folder / f"{name}.jsonl"), str(folder / f"{name}.jsonl") + "[:1]")
    assert parse_source(data.train).path == folder / f"{name}.jsonl"


@each_name
def test_a_model_is_read_from_a_folder(folder: Path) -> None:
    model = folder / "model"
    shutil.copytree(load_recipe("demo", environ={}).recipe.model.name, model)
    (folder / "template.jinja").write_text("{{ messages }}")
    settings = ModelSettings(name=str(model), chat_template=str(folder / "template.jinja"))
    assert load_tokenizer(settings).chat_template == chat_template(str(folder / "template.jinja")) == "{{ messages }}"
    check_targets(settings, ["q_proj"])
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    assert is_adapter(str(folder))
    assert base_settings(str(folder)).name == str(model)


@pytest.mark.parametrize("name", ["two\nlines", "a\tb", "bell\a", "not utf-8 \udcff", "next\u2028line"])
def test_what_cannot_be_printed_is_no_name_of_a_run_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="character that can't be printed"):
        create_run_dir(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_that_a_shell_left_in_an_option_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does in --out=~/runs; a folder named `~` would be a trap."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert search_parser().parse_args(["--out=~/runs/x"]).out == "/home/ann/runs/x"
    assert search_parser().parse_args(["--resume=~/runs/x"]).resume == "/home/ann/runs/x"
    assert search_parser().parse_args(["--out=s3://bucket/~x"]).out == "s3://bucket/~x"
    assert train_parser().parse_args(["--out=~/runs/x"]).out == Path("/home/ann/runs/x")
    assert report_parser().parse_args(["run", "--to=~/x"]).to == Path("/home/ann/x")
    assert str(parse_source("~/rows.jsonl").path) == "/home/ann/rows.jsonl"


def _commands(page: str) -> list[list[str]]:
    """What a person would paste into a shell."""
    return [shlex.split(html.unescape(text)) for text in re.findall(r"<pre>([^<]*)</pre>", page)]


def _recipe(*requests: str) -> DataSettings:
    return load_recipe("demo", ["data.format=prompt_completion", "data.test=null", *requests], environ={}).recipe.data


def _write(file: Path) -> None:
    if file.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        with file.open("wb") as opened:
            parquet.write_table(pa.Table.from_pylist(ROWS), opened)
    elif file.suffix == ".csv":
        file.write_text("prompt,completion\none,two\nthree,four\n", encoding="utf-8")
    elif file.suffix == ".json":
        file.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
