"""The command that judges an adapter or a model, and compares two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search_spaces.schema import Recipe
from trials.config import TrialConfig
from trials.data.dataset import TrialData
from trials.evaluate import main
from trials.records.trial_dir import TrialRecord

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapter(small_trial: TrialRecord) -> str:
    return str(small_trial.folder / "adapter")


@pytest.fixture
def command(adapter: str, small_recipe: Recipe) -> list[str]:
    return [adapter, "--data", small_recipe.data.eval, "--rows", str(small_recipe.data.eval_rows)]


@pytest.fixture(scope="module")
def texts(small_data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's rows as prompts and completions: a text task that the demo's models know something of."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = ({"prompt": e.prompt_text, "completion": e.completion} for e in small_data.eval.examples[:6])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def judged(
    adapter: str, small_recipe: Recipe, small_config: TrialConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Files that --json wrote: of the adapter, of its base, of the adapter's loss alone."""
    folder = tmp_path_factory.mktemp("judged")
    rows = ["--data", small_recipe.data.eval, "--rows", "6"]
    asked = {
        "ours": [adapter, "--labels"],
        "base": [small_config.model.name, "--labels"],
        "loss": [adapter],
        "other": [adapter, "--data", f"{small_recipe.data.eval}[6:]"],
    }
    for name, options in asked.items():
        assert main([options[0], *rows, *options[1:], "--json", str(folder / f"{name}.json")]) == 0
    return {name: str(folder / f"{name}.json") for name in asked}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "found.json"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_an_adapter_has_the_loss_of_its_trial_and_is_compared_with_its_base(
    command: list[str], small_trial: TrialRecord, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--against-base", "--json", str(out)]) == 0
    said, found = capsys.readouterr().out, _read(out)
    assert f"eval loss {small_trial.best_eval_loss:.4f} nats per token, 12 rows, standard error 0." in said
    assert "loss: adapter is better by " in said
    assert found["eval_loss"] == pytest.approx(small_trial.best_eval_loss, abs=5e-5)
    assert len(found["judged"]["losses"]["loss_sums"]) == 12
    loss = found["against_base"]["loss"]
    assert loss["a"] == found["base"]["eval_loss"]
    assert loss["difference"]["value"] == pytest.approx(found["eval_loss"] - loss["a"])
    assert loss["verdict"] == "b is better"
    assert "score" not in found["against_base"]


def test_labels_are_generated_and_judged(command: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command[:-1], "4", "--labels", "--against-base", "--json", str(out)]) == 0
    said, found = capsys.readouterr().out, _read(out)
    labels = found["labels"]
    assert labels["rows"] == sum(map(sum, labels["confusion"])) == 4
    assert labels["accuracy"]["value"] + labels["unparsed"]["value"] <= 1
    assert f"accuracy {100 * labels['accuracy']['value']:.1f}" in " ".join(said.split())
    assert found["base"]["labels"]["rows"] == 4
    cells = found["against_base"]["score"]
    assert cells["both_right"] + cells["only_b_right"] == round(4 * labels["accuracy"]["value"])
    assert "McNemar's exact p" in said


def test_text_is_scored_by_rouge_with_a_table_by_length(
    adapter: str, texts: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_task = [adapter, "--data", texts, "--format", "prompt_completion", "--rouge", "--against-base"]
    assert main([*text_task, "--json", str(out)]) == 0
    said, found = capsys.readouterr().out, _read(out)
    rouge = found["rouge_l"]
    assert 0 < rouge["low"] <= rouge["value"] <= rouge["high"] <= 1
    assert sum(part["rows"] for part in found["by_length"]) == 6
    assert "reference tokens" in said
    assert found["against_base"]["score"]["b"] == rouge["value"]
    assert "ROUGE-L: " in said.splitlines()[-1]


def test_a_plain_model_can_be_judged(
    command: list[str], small_config: TrialConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([small_config.model.name, *command[1:], "--quantization", "none"]) == 0
    assert "eval loss" in capsys.readouterr().out


def test_two_files_are_compared_both_ways(judged: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--compare", judged["base"], judged["ours"]]) == 0
    there = capsys.readouterr().out
    assert main(["--compare", judged["ours"], judged["base"]]) == 0
    back = capsys.readouterr().out
    assert "loss: B is better by " in there
    assert "loss: A is better by " in back
    assert there.split("loss: B is better by ")[1].split(",")[0] == back.split("loss: A is better by ")[1].split(",")[0]
    assert "labels: " in there


def test_two_models_are_compared_as_their_files_are(
    command: list[str], small_config: TrialConfig, judged: dict[str, str], out: Path
) -> None:
    rows = [*command[1:-1], "6"]
    assert main(["--compare", small_config.model.name, command[0], *rows, "--json", str(out)]) == 0
    of_models = _read(out)
    assert main(["--compare", judged["base"], judged["ours"], "--json", str(out)]) == 0
    of_files = _read(out)
    assert of_models["comparison"] == of_files["comparison"]
    assert of_models["comparison"]["rows"] == 6
    assert "score" in of_models["comparison"]  # labels are part of it without being asked for


def test_a_model_can_be_compared_with_a_file_and_cannot_be_told_from_itself(
    command: list[str], judged: dict[str, str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--compare", command[0], judged["ours"], *command[1:-1], "6", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "loss: A and B cannot be told apart: B - A is 0.0000" in said
    assert "labels: A and B cannot be told apart: B - A is 0.0" in said
    comparison = _read(out)["comparison"]
    assert comparison["loss"]["verdict"] == comparison["score"]["verdict"] == "cannot be told apart"
    assert comparison["score"]["p_value"] == 1


def test_a_trials_format_is_known(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--format", "instruction"]) == 2
    assert "format 'instruction'" in capsys.readouterr().err
    assert main(command) == 0


BAD = {
    "no rows at all": (["{adapter}"], "{adapter} can't be judged without rows. Give --data SOURCE."),
    "nothing to judge": ([], "give either ADAPTER_OR_MODEL, which is judged, or --compare A B."),
    "one and two": (
        ["{adapter}", "--compare", "{ours}", "{base}"],
        "give either ADAPTER_OR_MODEL, which is judged, or --compare A B.",
    ),
    "a file to judge": (["{ours}"], "{ours} is a file. Give an adapter's or a model's folder, or --compare A B."),
    "no such data": (["{adapter}", "--data", "absent.jsonl"], "no data file absent.jsonl"),
    "empty data": (["{adapter}", "--data", "{empty}"], "{empty} has no rows. Give a source with one row or more."),
    "one row": (
        ["{adapter}", "--data", "{dev}[:1]"],
        "{dev}[:1]: only one row can be used, and an interval needs at least two. Give more.",
    ),
    "too long": (
        ["{adapter}", "--data", "{dev}", "--rows", "12", "--max-length-tokens", "20"],
        "12 of 12 rows are longer than data.max_length_tokens=20",
    ),
    "labels where there are none": (
        ["{adapter}", "--data", "{dev}", "--format", "messages", "--labels"],
        "--labels needs rows with labels, and format 'messages' has none. Allowed with --labels: nli_cot, nli. "
        "Text is scored by --rouge.",
    ),
    "rouge of labels": (
        ["{adapter}", "--data", "{dev}", "--rouge"],
        "--rouge is for text, and format 'nli_cot' is judged by its labels. Use --labels.",
    ),
    "rouge of plain text": (
        ["{adapter}", "--data", "{dev}", "--format", "text", "--rouge"],
        "format 'text' has no question that could be answered, so it's judged by its loss alone.",
    ),
    "the base of a base": (
        ["{model}", "--data", "{dev}", "--against-base"],
        "--against-base needs an adapter, and {model} is none: it has no adapter_config.json.",
    ),
    "the base of two": (
        ["--compare", "{ours}", "{base}", "--against-base"],
        "--against-base belongs to one adapter. With --compare, give the base as A or B.",
    ),
    "no such template": (
        ["{adapter}", "--data", "{dev}", "--chat-template", "limerick"],
        "no chat template 'limerick'.",
    ),
    "no folder for the file": (
        ["{adapter}", "--data", "{dev}", "--json", "absent/found.json"],
        "can't write absent/found.json: there's no folder absent. Make it first.",
    ),
    "a missing adapter to compare": (
        ["--compare", "{adapter}", "runs/x/adapter", "--data", "{dev}", "--rows", "2"],
        "no model in runs/x/adapter: there is no tokenizer_config.json in it.",
    ),
    "a missing file to compare": (
        ["--compare", "{ours}", "absent.json"],
        "no file absent.json. Give one that --json wrote, an adapter or a model.",
    ),
    "models without rows": (
        ["--compare", "{ours}", "{adapter}"],
        "{adapter} can't be judged without rows. Give --data SOURCE.",
    ),
    "files with rows": (
        ["--compare", "{ours}", "{base}", "--data", "{dev}"],
        "--data {dev} isn't used: {ours} and {base} were judged before. Leave it out.",
    ),
    "other rows": (
        ["--compare", "{ours}", "{other}"],
        "{adapter} and {adapter} are not judged on the same rows: 6 rows of {dev}, 6 of {dev}[6:], which differ in "
        "number, order or text. Judge both with the same --data, --format, --rows and --max-length-tokens.",
    ),
    "other rows than a file's": (
        ["--compare", "{ours}", "{adapter}", "--data", "{dev}", "--rows", "7"],
        "{adapter} and {adapter} are not judged on the same rows: 6 rows of {dev}, 7 of {dev}, which differ",
    ),
    "not ours": (
        ["--compare", "{ours}", "{foreign}"],
        "{foreign} is no file that `python -m trials.evaluate MODEL --data SOURCE --json FILE` wrote. "
        "Give such a file, an adapter or a model.",
    ),
    "labels of a file without answers": (
        ["--compare", "{ours}", "{loss}", "--labels"],
        "--labels compares answers, and {loss} has none. Judge {adapter} again with --labels.",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_2_and_says_why(
    options: list[str],
    message: str,
    adapter: str,
    small_config: TrialConfig,
    judged: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "foreign.json").write_text('{"judged": {"model": "mine"}}')
    names = {
        **judged,
        "adapter": adapter,
        "model": small_config.model.name,
        "dev": small_config.data.eval,
        "empty": str(tmp_path / "empty.jsonl"),
        "foreign": str(tmp_path / "foreign.json"),
    }
    assert main([option.format(**names) for option in options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message.format(**names) in said


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "poems"],
        ["--rows", "1"],
        ["--rows", "-1"],
        ["--batch-rows", "0"],
        ["--max-length-tokens", "x"],
        ["--max-new-tokens", "0"],
        ["--compare", "one"],
        ["--rouge", "--labels"],
    ],
)
def test_options_out_of_bounds_end_with_2(
    command: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, *options])
    assert ended.value.code == 2
    assert f"error: argument {options[-1] if options[0] == '--rouge' else options[0]}: " in capsys.readouterr().err


def test_no_model_ends_with_2(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), *command[1:]]) == 2
    assert f"no model in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["a,b\n1,2\n", '{"prompt": "a row"}', "[1]"])
def test_a_file_that_it_has_not_written_is_left_as_it_is(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").write_text(content)
    assert main(["base", "--data", "rows.jsonl", "--json", str(tmp_path / "rows")]) == 2
    assert "is there already, and this command hasn't written it" in capsys.readouterr().err
    assert (tmp_path / "rows").read_text() == content
