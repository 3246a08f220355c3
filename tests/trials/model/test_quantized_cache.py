"""The quantised base on disk: read where it's whole, made anew where it isn't, and never half written."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from search_spaces.loader import RECIPE_FOLDER
from tests.support.cli import ROOT, environment, run_command
from tests.support.fake_hub import Hub
from trials.config import ModelSettings
from trials.data.dataset import TrialData
from trials.evaluation.eval_loss import evaluate_rows
from trials.model.loading import load_base
from trials.model.quantized_cache import load_quantized_base

DEMO = RECIPE_FOLDER / "demo" / "base"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A base model of one's own."""
    return Path(shutil.copytree(DEMO, tmp_path / "original"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "home" / "nf4"


def load(original: Path, root: Path, **settings: str) -> PreTrainedModel:
    return load_quantized_base(ModelSettings(name=str(original), **settings), root, least_bytes=0)


def saved(root: Path) -> list[Path]:
    """What is whole, or looks like it."""
    return sorted(path for path in root.iterdir() if path.is_dir() and "." not in path.name)


def scale_norm(weights: Path, factor: float) -> None:
    """Another number in one place of a file that is written anew, with the time stamp that it had."""
    times, tensors = weights.stat(), load_file(str(weights))
    tensors["model.norm.weight"] *= factor
    save_file(tensors, str(weights), metadata={"format": "pt"})
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))


def last_norm(model: PreTrainedModel) -> torch.Tensor:
    return model.state_dict()["model.norm.weight"]


def test_the_second_engine_reads_what_the_first_one_quantised(
    original: Path, root: Path, small_data: TrialData
) -> None:
    first = load(original, root)
    second = load(original, root)
    weights, again = first.state_dict(), second.state_dict()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    rows = small_data.eval.rows
    assert evaluate_rows(first, rows, 4) == evaluate_rows(second, rows, 4)
    assert evaluate_rows(second, rows, 4) == evaluate_rows(load_base(ModelSettings(name=str(DEMO))), rows, 4)
    assert second.name_or_path == second.config.name_or_path == str(original)
    assert not any(parameter.requires_grad for parameter in second.parameters())
    (folder,) = saved(root)
    scale_norm(folder / "model.safetensors", 2)
    assert torch.equal(last_norm(load(original, root)), 2 * last_norm(first)), "read from where it was saved"


def test_a_model_that_was_replaced_under_the_same_time_stamp_is_another(original: Path, root: Path) -> None:
    first = load(original, root)
    scale_norm(original / "model.safetensors", 4)
    assert torch.equal(last_norm(load(original, root)), 4 * last_norm(first))
    assert len(saved(root)) == 2


def test_other_weights_are_saved_apart(original: Path, root: Path) -> None:
    load(original, root)
    load(original, root, compute_dtype="bfloat16")
    assert len(saved(root)) == 2
    os.utime(original / "model.safetensors")
    load(original, root)
    assert len(saved(root)) == 3


def test_what_is_small_or_not_quantised_here_is_not_saved(original: Path, root: Path) -> None:
    load_quantized_base(ModelSettings(name=str(original)), root)
    load(original, root, quantization="none")
    assert not root.exists()
    load(original, root)
    (quantised,) = saved(root)
    load(quantised, root)
    assert saved(root) == [quantised]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_one_is_set_aside_and_made_anew(
    name: str, original: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(original, root)
    (folder,) = saved(root)
    whole = (folder / name).read_bytes()
    for broken in (whole[: len(whole) // 2], b""):
        (folder / name).write_bytes(broken)
        load(original, root)
        assert (folder / name).read_bytes() == whole
        assert (folder.with_name(f"{folder.name}.damaged") / name).read_bytes() == broken
    assert [message.split(" (")[0] for message in caplog.messages] == [f"the saved base model {folder} is damaged"] * 2


def test_one_that_lacks_a_weight_is_damaged(original: Path, root: Path) -> None:
    load(original, root)
    (folder,) = saved(root)
    weights = load_file(str(folder / "model.safetensors"))
    name = next(name for name in weights if name.endswith("layernorm.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, str(folder / "model.safetensors"))
    load(original, root)
    assert name in load_file(str(folder / "model.safetensors"))


KILLED = """
import os, signal, sys

def kill_before_the_rename(event, arguments):
    if event == "os.rename" and ".new-" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_before_the_rename)
from tests.trials.model.test_quantized_cache import Path, load
load(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_in_the_middle_it_leaves_nothing_that_is_used(original: Path, root: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(original), str(root)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert saved(root) == []
    assert [path for path in root.iterdir() if path.is_dir()]
    load(original, root)
    assert [path for path in root.iterdir() if path.is_dir()] == saved(root)
    assert len(saved(root)) == 1


def test_where_nothing_can_be_written_the_original_is_used(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert load(original, tmp_path / "file" / "nf4").config.model_type == "mistral"
    assert "can't be saved" in caplog.text


ON_THE_HUB = """
import sys
from trials.config import ModelSettings
from trials.model.quantized_cache import load_quantized_base, saved_bases

for revision in (None, "main", sys.argv[1]):
    load_quantized_base(ModelSettings(name="ann/model", revision=revision), least_bytes=0)
    print(len(list(saved_bases().glob("*/model.safetensors"))))
"""


def test_a_model_of_the_hub_is_saved_by_its_commit(tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as hub:
        commit = hub.commit("models", "ann/model", {path.name: path for path in DEMO.iterdir() if path.is_file()})
        done = run_command([sys.executable, "-c", ON_THE_HUB, commit], **hub.environment(tmp_path / "home"))
    assert done.stdout.split() == ["0", "0", "1"], done.stderr
    assert (tmp_path / "home" / "qlora-orchestrator" / "nf4").is_dir()
