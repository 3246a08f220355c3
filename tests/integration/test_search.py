"""The whole search, for real: Ray, Optuna, NF4, TRL, export and report, from the command line."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from orchestrator.export.exporter import export_best
from orchestrator.search import main
from orchestrator.state.run_dir import RunDir
from tests.support.cli import ROOT, environment, run_command, searcher, small_search
from trials.records.trial_dir import Origin, TrialRecord
from trials.state import TrialState

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Done:
    run: RunDir
    output: str
    code: int

    def records(self) -> list[TrialRecord]:
        return self.run.records()

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=None, storage=self.run.study_url)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One search of five configurations, one of which can only diverge; the first eval rows are answered and scored.

    Its run folder has a name that URLs, patterns, format strings and shells would each read otherwise.
    """
    out = tmp_path_factory.mktemp("search") / "why?not 100%#[1] {x} ü" / "it's \"&\\ -r$n"
    options = ["--out", str(out), "--trials", "5", "--budget", "5m"]
    diverging = ["start.too_fast={learning_rate: 1.0, scheduler: constant}", "space.learning_rate.high=1.0"]
    settings = ["keep_adapters=2", "score_rows=2", "checkpoint_every_rows=4"]
    found = run_command([*small_search(), *diverging, *settings, *options])
    return Done(RunDir(out), found.stdout + found.stderr, found.returncode)


def test_it_ends_with_an_export_and_says_where(done: Done) -> None:
    assert done.code == 0, done.output
    assert f"adapter: {done.run.export}" in done.output
    assert f"report: {done.run.path / 'report.html'}" in done.output
    assert "try it: " in done.output
    assert (done.run.path / "report.html").stat().st_size > 10_000
    assert (done.run.path / "trials.csv").read_text().count("\n") >= 7
    assert (done.run.path / "study.db").is_file()
    assert [path.name for path in done.run.path.parent.parent.iterdir()] == [done.run.path.parent.name]


def test_the_command_that_it_ends_with_generates_text(done: Done) -> None:
    command = done.output.split("try it: ")[1]
    found = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()


def test_the_base_comes_first_then_starting_points_then_proposals(done: Done) -> None:
    records = done.records()
    assert [record.origin for record in records] == [Origin.BASE, Origin.START, Origin.START] + [Origin.PROPOSED] * 3
    assert [record.name for record in records[1:3]] == ["usual", "too_fast"]
    base = records[0]
    assert [(point.step, point.tokens_seen) for point in base.points] == [(0, 0)]
    assert not base.has_adapter


def test_every_outcome_reaches_the_study_as_what_it_is(done: Done) -> None:
    records = done.records()[1:]
    expected = {
        TrialState.FINISHED: OptunaState.COMPLETE,
        TrialState.EARLY_STOPPED: OptunaState.COMPLETE,
        TrialState.PRUNED: OptunaState.PRUNED,
        TrialState.DIVERGED: OptunaState.PRUNED,
    }
    trials = done.study().trials[1:]
    assert len(trials) == len(records) == 5
    for record, trial in zip(records, trials, strict=True):
        assert record.ending is not None
        assert trial.state is expected[record.ending.kind]
        assert trial.intermediate_values == {point.tokens_seen: point.best_eval_loss for point in record.points}
        infeasible = any(value > 0 for value in trial.constraints.values())
        assert infeasible is (record.ending.kind is TrialState.DIVERGED)
    assert records[1].ending is not None
    assert records[1].ending.kind is TrialState.DIVERGED
    assert done.study().user_attrs["base_eval_loss"] == done.records()[0].best_eval_loss


def test_scores_are_taken_at_rungs_and_at_the_end_and_reach_everywhere(done: Done) -> None:
    rungs = done.run.read_search().rungs
    for record in done.records():
        reached = {next((p.step for p in record.points if p.tokens_seen >= tokens), None) for tokens in rungs}
        if record.ending and record.ending.kind in {TrialState.FINISHED, TrialState.EARLY_STOPPED}:
            reached.add(record.points[-1].step)
        if record.ending and record.ending.kind is not TrialState.DIVERGED:
            assert {point.step for point in record.points if point.score is not None} == reached - {None}
            assert {scoring.step for scoring in record.scorings} == reached - {None}
    assert done.study().user_attrs["base_score"] == done.records()[0].score
    assert ", score 0." in done.output or ", score 1." in done.output
    assert json.loads((done.run.export / "manifest.json").read_text())["scores"]["rows"] == 2
    assert "## Scores" in (done.run.export / "README.md").read_text()
    assert "Loss and score" in (done.run.path / "report.html").read_text()


def test_disk_holds_only_the_best_adapters_and_no_checkpoints(done: Done) -> None:
    assert sum(record.has_adapter for record in done.records()) == 2
    assert {record.config.machine.checkpoint_every_rows for record in done.records()} == {4}
    assert not list(done.run.path.glob("trials/*/checkpoints"))


def test_the_export_is_what_the_manifest_says(done: Done) -> None:
    manifest = json.loads((done.run.export / "manifest.json").read_text())
    ranked = sorted((r.best_eval_loss, r.id) for r in done.records() if r.points and r.origin is not Origin.BASE)
    assert (manifest["eval_loss"], manifest["trial"]) == ranked[0]
    assert manifest["verified"]["difference"] <= 1e-3
    assert manifest["base_eval_loss"] > manifest["eval_loss"]
    assert manifest["test"]["rows"] == 8
    assert {start["name"] for start in manifest["starting_points"]} == {"usual", "too_fast"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((done.run.export / name).read_bytes()).hexdigest() == digest
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= set(manifest["files"])


def test_a_pipe_gets_one_plain_line_an_event(done: Done) -> None:
    lines = [line for line in done.output.splitlines() if " left] " in line]
    assert any("trial 0000 at 0 tokens: eval loss" in line for line in lines)
    assert sum(" started: " in line for line in lines) == 7  # the base, what measures the speed, five trials
    assert "\x1b" not in done.output


def test_tensorboard_events_are_in_the_trial_folders(done: Done) -> None:
    assert all(list(record.folder.glob("tensorboard/events.*")) for record in done.records()[1:])


def test_an_adapter_that_was_swapped_is_not_exported_and_the_next_one_is_also_merged(
    done: Done, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(done.run.path, copy)
    run = RunDir(copy)
    best = json.loads((run.export / "manifest.json").read_text())["trial"]
    other = next(record for record in run.records() if record.has_adapter and record.id != best)
    shutil.copytree(run.trial(best), run.trial("0099"))
    shutil.copytree(other.folder / "adapter", run.trial(best) / "adapter", dirs_exist_ok=True)
    manifest = export_best(run, tmp_path / "export", merge=True).manifest
    assert manifest["trial"] == "0099"
    assert [each["trial"] for each in manifest["skipped"]] == [best]
    assert "but the trial measured" in manifest["skipped"][0]["reason"]
    assert (tmp_path / "export" / "merged" / "model.safetensors").is_file()
    assert abs(manifest["merged"]["eval_loss"] - manifest["eval_loss"]) <= manifest["merged"]["tolerance"]
    assert "merged/model.safetensors" in manifest["files"]


def _interrupted(command: list[str], after: str) -> tuple[str, int]:
    """What a command says that is interrupted once it has said something, and its exit code."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if after in line:
                process.send_signal(signal.SIGINT)
                break
        rest, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    return "".join(seen) + rest, process.returncode


def test_interrupted_once_it_exports_and_can_be_resumed(tmp_path: Path) -> None:
    """With two processes for each trial; in engines, the tests of kills, of stores and of the hub resume searches.

    Meanwhile its run folder is moved, from one place with a name that URLs read otherwise to another.
    """
    out = tmp_path / "first?place 100%#" / "run"
    options = ["--gpus-per-trial", "2", "--out", str(out), "--budget", "9m", "--trials", "4"]
    settings = ["train_tokens=6000", *searcher("gp", "asha_promote")]
    output, code = _interrupted(small_search(*settings, *options), after="trial 0001 at")
    assert code == 130, output
    assert f"--resume {shlex.quote(str(out))}" in output
    (tmp_path / "other [disk]").mkdir()
    out = out.rename(tmp_path / "other [disk]" / "night 1")
    run = RunDir(out)
    assert (run.export / "manifest.json").is_file()
    cut_off = [record for record in run.records() if record.ending is None]
    assert cut_off
    study = optuna.load_study(study_name=None, storage=run.study_url)
    assert len(study.get_trials(states=[OptunaState.RUNNING])) == len(cut_off)  # they can go on
    seen_tokens = {record.id: record.tokens_seen for record in cut_off}
    deadline = run.read_search().deadline

    command = [sys.executable, "-m", "orchestrator.search", "--resume", str(out), "--trials", "2"]
    resumed = run_command(command, timeout=540)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert (run.read_search().deadline, run.read_search().ranks) == (deadline, 2)
    records = {record.id: record for record in run.records()}
    assert all(records[trial_id].ending is not None for trial_id in seen_tokens)
    assert any(records[trial_id].tokens_seen > tokens for trial_id, tokens in seen_tokens.items())
    # On a busy machine one may have paused before the interruption arrived.
    assert any(f"trial {name} goes on from {tokens:,} tokens" in resumed.stdout for name, tokens in seen_tokens.items())
    assert sum(record.origin is Origin.BASE for record in records.values()) == 1
    kinds = {record.ending.kind for record in records.values() if record.ending}
    assert kinds <= {TrialState.FINISHED, TrialState.PRUNED, TrialState.OUT_OF_TIME, TrialState.EARLY_STOPPED}
    for record in records.values():
        steps = [point.step for point in record.points]
        assert steps == sorted(set(steps))
    assert list((tmp_path / "first?place 100%#").iterdir()) == []  # where it was, nothing is written any more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first?place 100%#", "other [disk]"]
    assert list((out / "ray").glob("group-*"))  # Ray Train's own: processes did train together
    assert json.loads((run.export / "manifest.json").read_text())["verified"]["difference"] <= 1e-3


def test_plan_says_what_would_happen_and_runs_nothing(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--plan", "--budget", "7m", "--set", "lora_rank=8"]) == 0
    said = capsys.readouterr().out
    assert "time: 7m00s" in said
    assert "hyperparameters.lora_rank = 8  (--set)" in said
    assert "may pause, at 11,111, 22,222, 33,333" in said
    assert list(in_tmp_path.iterdir()) == []


def test_a_budget_that_leaves_no_time_for_an_evaluation_is_too_short(tmp_path: Path) -> None:
    found = run_command(
        small_search("reserve=60s", "concurrent_trials=1", "--out", str(tmp_path / "run"), "--budget", "62s")
    )
    assert found.returncode == 2, found.stdout + found.stderr
    assert "the budget is too short for one evaluation" in found.stderr


def test_a_trial_cut_off_by_the_end_of_its_process_is_not_a_failure(tmp_path: Path) -> None:
    """Ray ends a worker while its trial's thread still runs, with files closed under it."""
    script = f"""
import atexit, threading
from pathlib import Path
from search_spaces.loader import load_recipe
from tests.conftest import SMALL
from trials.data.dataset import load_data
from trials.model.loading import load_tokenizer
from trials.records.trial_dir import Origin, TrialDir
from trials.training.training_run import Decision, TrainingRun
from trials.trl.backend import TrlBackend

recipe = load_recipe("demo", [*SMALL, "train_tokens=100000", "evaluations=50"], environ={{}}).recipe
config, tokenizer = recipe.trial_config({{}}), load_tokenizer(recipe.model)
folder, evaluated = TrialDir(Path({str(tmp_path / "trial")!r})), threading.Event()
folder.begin(config, Origin.SINGLE, "cut off")

def on_eval(point):
    evaluated.set()
    if not threading.main_thread().is_alive():
        raise ValueError("flush of closed file")
    return Decision.CONTINUE

run = TrainingRun(config, load_data(recipe.data, tokenizer), tokenizer, folder, on_eval)
trial = threading.Thread(target=TrlBackend().run, args=(run,), daemon=True)
trial.start()
atexit.register(trial.join, 60)
evaluated.wait()
"""
    found = run_command([sys.executable, "-c", script], timeout=120)
    assert "flush of closed file" in found.stderr
    assert (tmp_path / "trial" / "metrics.jsonl").exists()
    assert not (tmp_path / "trial" / "ending.json").exists()
