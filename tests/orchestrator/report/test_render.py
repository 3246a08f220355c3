import csv
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.report.render import main, write_report
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import BASE, Told, new_run, night, right, write_prediction, write_samples, write_trial
from trials.errors import RunFolderError
from trials.records.trial_dir import Ending
from trials.state import TrialState

HEADINGS = [
    "Learning curves",
    "Ranking",
    "What was stopped, and why",
    "Plan and search",
    "What mattered",
    "Base and winner, side by side",
    "How to use it",
]


class Page(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br"}:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._inside[-1:] != ["style"]:
            self.words.append(data)
            if self._inside[-1:] == ["h2"]:
                self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole_night(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = night(tmp_path_factory.mktemp("night") / "run")
    write_prediction(run)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(whole_night: RunDir) -> Page:
    return Page(whole_night.path / "report.html")


def test_sections_come_in_order(page: Page) -> None:
    assert page.headings == HEADINGS


def test_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    addresses = [value for _, attributes in page.tags for key, value in attributes.items() if key in {"src", "href"}]
    assert addresses == ["data:,"]
    own_scripts = [script for script in page.scripts if len(script) < 1_000_000]
    assert not any(re.search(r"https?://", script) for script in own_scripts)


def test_plotly_is_in_the_page_once(page: Page) -> None:
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1
    figures = {attributes.get("id") for tag, attributes in page.tags if tag == "div"}
    assert {"curves", "importance", "loss-against"} <= figures


def test_the_whole_night_is_told(whole_night: RunDir, page: Page) -> None:
    winner = whole_night.read_json("export/manifest.json")["trial"]
    assert f"Trial {winner} wins" in page.text
    assert "was verified" in page.text
    assert "a gain of 0.8111 ± 0.0123 (clear)" in page.text
    for record in whole_night.records():
        assert record.id in page.text
        if record.ending is not None and record.ending.kind not in {TrialState.FINISHED}:
            assert record.ending.reason in page.text
    assert "running or paused" in page.text


def test_the_page_says_what_to_type(whole_night: RunDir, page: Page) -> None:
    path = whole_night.path
    for command in (
        f"python -m trials.generate {path}/export --prompt TEXT",
        f"python -m orchestrator.search --resume {path}",
        f"optuna-dashboard sqlite:///{path}/study.db",
    ):
        assert command in page.text
    assert "hyperparameters.weight_decay 0.02 --set" in page.text


def test_writing_the_report_changes_nothing_else(whole_night: RunDir) -> None:
    def others() -> dict[Path, bytes]:
        files = (file for file in whole_night.path.rglob("*") if file.is_file())
        return {file: file.read_bytes() for file in files if file.name not in {"report.html", "trials.csv"}}

    before = others()
    write_report(whole_night)
    assert others() == before


def test_csv_has_all_trials(whole_night: RunDir) -> None:
    with (whole_night.path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [record.id for record in whole_night.records()]


def test_samples_are_shown_as_text_not_as_html(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_samples(run, winner="<script>alert(1)</script>", base="<img src=x onerror=alert(2)>", prompt="a & b < c")
    page = Page(write_report(run))
    assert "<script>alert(1)</script>" in page.text
    assert "<img src=x onerror=alert(2)>" in page.text
    assert "a & b < c" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(script.startswith("alert") for script in page.scripts)


def test_reasons_and_names_are_shown_as_text(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    reason = "RuntimeError: </script><script>alert(3)</script>"
    write_trial(run, Told("0001", [1.5], Ending(TrialState.FAILED, reason), name="</script><i>x"))
    page = Page(write_report(run))
    assert reason in page.text
    assert not any(script.startswith("alert") for script in page.scripts)
    assert not any(tag == "i" for tag, _ in page.tags)


def test_a_search_that_has_just_begun(tmp_path: Path) -> None:
    page = Page(write_report(new_run(tmp_path / "run")))
    assert "No adapter is worth exporting yet: the base model was not evaluated" in page.text
    assert "No trial was started yet." in page.text
    assert "Base and winner" not in page.text
    assert "optuna-dashboard" not in page.text.partition("How to use it")[2].partition("Settings")[0]


def test_a_search_that_was_killed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    write_trial(run, Told("0001", [1.5, 1.4], None))
    folder = write_trial(run, Told("0002", [1.3, 1.2], None))
    metrics = folder.path / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    write_trial(run, Told("0003", [], None))

    page = Page(write_report(run))

    # The line of its last evaluation was cut, but the adapter that was saved before it knows its loss.
    assert "Trial 0002 wins with an eval loss of 1.2000" in page.text
    assert "Trial 0002 is not exported yet" in page.text
    assert "3 trials: 3 running or paused." in page.text


def test_neither_torch_nor_ray_is_imported(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    for number in range(1, 10):
        values = {"learning_rate": number / 1000, "lora_rank": [4, 8, 16][number % 3]}
        write_trial(run, Told(f"{number:04d}", [1 + number / 100], values=values))
    code = (
        "import sys; from orchestrator.report.render import main; code = main(sys.argv[1:]); "
        "heavy = sorted({'torch', 'ray', 'transformers', 'peft'} & sys.modules.keys()); sys.exit(f'{code} {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "0 []"
    assert str(run.path / "report.html") in done.stdout


def test_main_says_what_is_wrong_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "holds no search" in message
    assert len(message.splitlines()) == 1


def test_the_report_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run.path / "samples.json").write_text('[{"id": ')
    assert main([str(run.path)]) == 0
    assert "samples.json can't be read: it is no JSON" in Page(run.path / "report.html").text


def test_a_folder_that_can_not_be_written_to_is_bad_input(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run.path / "report.html").mkdir()
    with pytest.raises(RunFolderError, match="can't write to"):
        write_report(run)


@pytest.mark.parametrize("name", ["report.html", "trials.csv"])
def test_a_file_of_somebody_else_under_its_names_is_left_as_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / name).write_text("of another project")
    assert main([str(run.path), "--to", str(tmp_path / "to")]) == 2
    assert f"{name} is there already, and this command hasn't written it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "to").iterdir()] == [name]
    (tmp_path / "to" / name).unlink()
    for _ in range(2):  # its own files it replaces
        assert main([str(run.path), "--to", str(tmp_path / "to")]) == 0


def test_loss_and_score_have_a_section_where_scores_were_asked_for(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", ["evaluation.score_rows=40"])
    base = replace(BASE, scores={1: right(4)})
    write_trial(run, base)
    write_trial(run, Told("0001", [1.5, 1.2], scores={1: right(10), 2: right(20)}))
    write_trial(run, Told("0002", [1.6, 1.4], scores={1: right(9), 2: right(38)}))
    page = Page(write_report(run))
    assert page.headings.index("Loss and score") == page.headings.index("What mattered") + 1
    assert "scores" in {attributes.get("id") for tag, attributes in page.tags if tag == "div"}
    assert "Trial 0002 has the best accuracy, 95.0 % (83.5 to 98.6)" in page.text
    assert "At 11,111 tokens" in page.text
    assert "0002 the better score, by 45.0" in page.text
    assert "The base model's accuracy is 10.0" in page.text


def test_a_search_that_asks_for_scores_and_has_none_yet(tmp_path: Path) -> None:
    page = Page(write_report(new_run(tmp_path / "run", ["evaluation.score_rows=40"])))
    assert "Nothing was scored so far." in page.text
