"""The command that runs one trial without Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search_spaces.loader import RECIPE_FOLDER
from tests.conftest import SMALL
from tests.support.cli import ROOT, environment, run_command
from tests.support.fake_driver import FakeDriver
from tests.support.guide_configs import BY_PATH, write
from trials.records.checkpoints import whole_checkpoints
from trials.records.trial_dir import Origin, TrialDir, read_trial
from trials.state import TrialState
from trials.train import main

pytestmark = pytest.mark.slow

DEMO = RECIPE_FOLDER / "demo"
TINY = [*SMALL, "train_tokens=800", "evaluations=1", "learning_rate=1e-3"]


def test_a_trial_is_trained_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trial"
    assert main(["demo", "--set", *TINY, "score_rows=2", "--out", str(out)]) == 0
    record = read_trial(out)
    assert (record.origin, record.name) == (Origin.SINGLE, "demo")
    assert record.ending is not None
    assert record.ending.kind is TrialState.FINISHED
    assert record.config.hyperparameters.learning_rate == 1e-3
    assert record.has_adapter
    said = capsys.readouterr().out
    assert f"eval loss {record.best_eval_loss:.4f}, score {record.score:.4f}, " in said
    assert said.endswith(f"best adapter: {out / 'adapter'}\n")


def test_the_default_folder_is_under_runs(in_tmp_path: Path) -> None:
    assert main(["--set", *TINY]) == 0
    (folder,) = (in_tmp_path / "runs").iterdir()
    assert folder.name.startswith("trial-demo-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dem"], "unknown recipe 'dem'; did you mean 'demo'?"),
        (["--set", "learning_rat=1e-4"], "the nearest known one is 'hyperparameters.learning_rate'"),
        (["--set", "model.name=./gone"], "no model in"),
        (["--set", "data.train=gone.jsonl"], "no data file"),
        (["--config", "gone.py"], "can't load the config file gone.py: FileNotFoundError"),
        (["demo", "--config", "default", "--set", "bach_size=1"], "the nearest known one is 'batch_size'"),
        (["--fallback-to-default"], "--fallback-to-default is for a config file that fails to load"),
    ],
)
def test_bad_input_ends_with_2_and_leaves_nothing(
    arguments: list[str], message: str, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", "trial"]) == 2
    assert message in capsys.readouterr().err
    assert not list(in_tmp_path.iterdir())


def test_a_folder_that_holds_a_trial_is_left_alone(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_tmp_path / "config.json").write_text("{}")
    assert main(["--out", "."]) == 2
    assert "already holds a trial" in capsys.readouterr().err
    assert (in_tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["adapter", "checkpoints", "metrics.jsonl", "lock", "tensorboard"])
def test_files_of_others_under_a_trials_names_are_left_alone(
    name: str, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = in_tmp_path / "models" / name
    others.mkdir(parents=True)
    (others / "weights").write_text("of another project")
    assert main(["--out", "models"]) == 2
    assert f"models/{name} is there already, and a trial would replace it" in capsys.readouterr().err
    assert [path.name for path in in_tmp_path.rglob("*")] == ["models", name, "weights"]


CONFIG = """
output_dir = "models/mine"
batch_size = 2
grad_accumulation_steps = 2
learning_rate = 1e-3
gradient_checkpointing = False
use_wandb = False
gpu_id = 1
"""


@pytest.fixture
def any_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU chosen by the environment, and none left chosen after the test."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_a_guides_config_file_is_a_trial(any_gpu: None, in_tmp_path: Path) -> None:
    file = write(in_tmp_path / "configs" / "mine.py", CONFIG)
    only_ours = [setting for setting in TINY if not setting.startswith(("learning_rate", "effective_batch"))]
    assert main(["demo", "--config", str(file), "--set", *only_ours]) == 0
    record = read_trial(in_tmp_path / "models" / "mine")
    assert record.has_adapter
    values = record.config.hyperparameters
    assert (values.learning_rate, values.effective_batch) == (1e-3, 4)
    assert record.config.machine.micro_batch_rows == 2
    assert (record.config.machine.gradient_checkpointing, record.config.tracking.wandb) == (False, False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("engine", ["trl", "shared"])
def test_on_a_machine_of_two_gpus_a_trial_takes_one(in_tmp_path: Path, fake_driver: FakeDriver, engine: str) -> None:
    """Seeing two, Transformers would have wrapped the model in DataParallel, and failed."""
    fake_driver("NVIDIA H200", "NVIDIA H200")
    assert main(["demo", "--out", "out", "--set", *TINY, f"engine={engine}"]) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_gpu_that_is_not_there_is_refused(
    in_tmp_path: Path, fake_driver: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_driver("NVIDIA H200")
    file = write(in_tmp_path / "mine.py", CONFIG)
    assert main(["demo", "--config", str(file), "--set", *TINY]) == 2
    assert "gpu_id = 1: this machine has no such GPU" in capsys.readouterr().err


def test_the_command_line_goes_before_the_config_file(
    any_gpu: None, in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    file = write(in_tmp_path / "mine.py", BY_PATH + CONFIG + f"model_id = {str(DEMO / 'base')!r}\nnum_epochs = 1\n")
    data = [f"train_data={DEMO / 'train.jsonl'}", f"eval_data={DEMO / 'dev.jsonl'}", "max_seq_length=256"]
    sizes = ["epochs=null", "train_tokens=800", "every_rows=null", "evaluations=1", "eval_rows=12", "test_rows=8"]
    arguments = ["demo", "--config", str(file), "--set", *data, *sizes, "--set", "batch_size=1", "lora_r=2"]
    assert main([*arguments, "--out", "out"]) == 0
    config = read_trial(in_tmp_path / "out").config
    assert (config.hyperparameters.effective_batch, config.hyperparameters.lora_rank) == (2, 2)
    assert (config.seed, config.hyperparameters.learning_rate) == (42, 1e-3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_broken_config_file_with_the_fallback_is_the_guides_default(
    any_gpu: None, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(in_tmp_path / "mine.py", "batch_size = \n")
    assert main(["demo", "--config", str(file), "--out", "out"]) == 2
    assert "mine.py: line 1: SyntaxError" in capsys.readouterr().err
    arguments = ["demo", "--config", str(file), "--fallback-to-default", "--out", "out"]
    assert main([*arguments, "--set", f"model_id={DEMO / 'base'}"]) == 2
    assert str(in_tmp_path / "data" / "finetune" / "train_ft.jsonl") in capsys.readouterr().err


def test_a_config_file_goes_with_the_guides_recipe(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(in_tmp_path / "mine.py", "learning_rate = 5.0\n")
    assert main(["--config", str(file)]) == 2
    assert "recipe 'nli_cot':" in capsys.readouterr().err


LONG = [*SMALL, "train_tokens=null", "rows_seen=96", "evaluations=8", "learning_rate=1e-3", "lora_dropout=0.1"]
LONG += ["checkpoint_every_rows=24"]  # 24 steps, an evaluation every 3 and a checkpoint every 6 of them


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial that ran through. Copy it, don't write to it."""
    out = tmp_path_factory.mktemp("straight") / "trial"
    assert main(["demo", "--set", *LONG, "--out", str(out)]) == 0
    return out


@pytest.fixture
def finished(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "finished"))


def _killed_after_its_second_checkpoint(out: Path, number: signal.Signals) -> str:
    """What a real process said that was ended by a signal while it trained on."""
    for _ in range(5):
        said = _signalled_after_its_second_checkpoint(out, number)
        if read_trial(out).ending is None:
            return said
        shutil.rmtree(out)  # on a busy machine this one is asleep while the trial runs to its end
    raise AssertionError(f"the trial always ended before it heard of {number.name}")


def _signalled_after_its_second_checkpoint(out: Path, number: signal.Signals) -> str:
    command = [sys.executable, "-m", "trials.train", "demo", "--set", *LONG, "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(whole_checkpoints(out)) < 2:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    return said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_was_killed_goes_on_as_if_nothing_had_happened(
    straight: Path, tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed"
    said = _killed_after_its_second_checkpoint(out, number)
    left = read_trial(out)
    steps = [checkpoint.step for checkpoint in whole_checkpoints(out)]
    assert left.ending is None
    assert steps[:2] == [6, 12]  # it trains on while it's being told
    if number == signal.SIGINT:
        assert f"go on with it: python -m trials.train --resume {out}" in said
    assert main(["--resume", str(out)]) == 0
    assert f"going on from the checkpoint of step {steps[-1]}" in capsys.readouterr().out
    resumed, expected = read_trial(out), read_trial(straight)
    assert resumed.ending == expected.ending
    assert [point.step for point in resumed.points] == [point.step for point in expected.points]
    for name in ("eval_loss", "train_loss"):
        losses = ([getattr(point, name) for point in record.points] for record in (resumed, expected))
        assert next(losses) == pytest.approx(next(losses), abs=1e-6, rel=0)


def test_a_half_written_checkpoint_is_not_used(
    finished: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (finished / "ending.json").unlink()
    for step in (18, 24):
        optimizer = finished / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt"
        optimizer.write_bytes(optimizer.read_bytes()[:-1000])
    assert main(["--resume", str(finished)]) == 0
    said = capsys.readouterr().out
    assert f"going on from the checkpoint of step 12; what came after it is in {finished / 'before-12'}" in said
    assert "checkpoint 24 is not whole, and not used" in caplog.text
    assert [checkpoint.step for checkpoint in whole_checkpoints(finished)] == [6, 12, 18, 24]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume", "finished"],
            "finished has ended already (finished: trained for all its 24 steps). Go back to an",
        ),
        (["--resume", "finished", "--checkpoint", "24"], "earlier step by --checkpoint, one of: 6, 12, 18."),
        (
            ["--resume", "finished", "--checkpoint", "7"],
            "holds no whole checkpoint of step 7. Give --checkpoint one of",
        ),
        (["--resume", "gone"], "gone holds no trial: there is no config.json in it"),
        (["--resume", "finished", "demo", "--set", "a=1"], "Leave out SPACE, --set, or start a new trial"),
        (["--resume", "finished", "--config", "c.py", "--out", "x"], "Leave out --out, --config, or start a new trial"),
        (["--checkpoint", "6"], "--checkpoint 6 of which trial? Give its folder with --resume."),
    ],
)
def test_what_can_not_be_resumed(
    finished: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(finished.parent)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_checkpoint_of_other_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "train.jsonl"
    lines = (DEMO / "train.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:200]))
    out = tmp_path / "trial"
    assert main(["demo", "--set", *TINY, "checkpoint_every_rows=4", f"data.train={data}", "--out", str(out)]) == 0
    (out / "ending.json").unlink()
    data.write_text("".join(lines[1:201]))
    assert main(["--resume", str(out), "--checkpoint", "1"]) == 2
    assert "the data or the tokenizer has changed since the trial in" in capsys.readouterr().err
    assert not list(out.glob("before*"))


def test_a_trial_of_a_search_is_not_resumed_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read_trial(finished).config
    (finished / "config.json").unlink()
    TrialDir(finished).begin(config, Origin.PROPOSED, "proposed")
    assert main(["--resume", str(finished), "--checkpoint", "6"]) == 2
    assert "is a trial of a search. Go on with that" in capsys.readouterr().err


TOGETHER = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "trials.train",
]


def test_two_processes_under_torchrun_leave_what_one_leaves(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    done = run_command([*TOGETHER, "demo", "--set", *LONG, "--out", str(out)])
    assert done.returncode == 0, done.stderr
    found, expected = read_trial(out), read_trial(straight)
    assert found.ending == expected.ending
    assert [(point.step, point.tokens_seen) for point in found.points] == [
        (point.step, point.tokens_seen) for point in expected.points
    ]
    for name in ("eval_loss", "train_loss"):
        ours, theirs = ([getattr(point, name) for point in record.points] for record in (found, expected))
        assert ours == pytest.approx(theirs, abs=1e-5, rel=0)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in straight.iterdir())
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(expected.points)
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert done.stdout.count("best adapter: ") == 1  # one of them talks
    assert done.stdout.count("step 24, ") == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["effective_batch=1"],
            "error: effective_batch 1 can't be divided over 2 processes. Give at least as many rows.",
        ),
        ([], "error: {out} already holds a trial. Give another --out, or remove that folder."),
    ],
    ids=["too few rows", "taken folder"],
)
def test_what_two_processes_refuse_one_of_them_says(settings: list[str], says: str, tmp_path: Path) -> None:
    out = tmp_path / "trial"
    if not settings:
        out.mkdir()
        (out / "config.json").write_text("{}")
    done = run_command([*TOGETHER, "demo", "--set", *TINY, *settings, "--out", str(out)])
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert says.format(out=out) in done.stderr
    assert "exitcode  : 2" in done.stderr  # torchrun's own is 1
    assert not (out / "metrics.jsonl").exists()
