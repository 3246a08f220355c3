"""What many tests share: the demo recipe made small, its real tokenizer and its real rows."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from search_spaces.loader import load_recipe
from search_spaces.schema import Recipe
from tests.support.fake_driver import FakeDriver
from tests.support.fake_search import make_run, make_search
from trials.config import TrialConfig
from trials.system import gpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tests.support.trained_trials import Workshop
    from trials.data.dataset import TrialData
    from trials.engine.engine import Engine
    from trials.records.trial_dir import TrialRecord

# No test may join a cluster that happens to run on this machine, log to a service, or ask a model hub.
os.environ["RAY_ADDRESS"] = "local"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
# Tokenised rows of a session are its own: no test finds what an earlier version of the code left behind.
_CACHE = tempfile.TemporaryDirectory(prefix="rows-")
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
# Processes of a session share a base, as they read each other's trials.
os.environ.setdefault("SHORT_BASE", f"{_CACHE.name}/short-base")
# As the command lines set it, but before any test module imports the library.
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# As the demo's trials run: sums in the same order, and no fight for cores.
os.environ["OMP_NUM_THREADS"] = "1"
# What a shell starts in the background, as some CI systems do, begins with Ctrl-C ignored, and so would every command
# that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Nothing depends on luck or on how busy a machine is: everywhere the same examples, and none has a time limit.
# HYPOTHESIS_PROFILE=search tries others, and more of them.
settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=60)
settings.register_profile("search", deadline=None, database=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
for name in [name for name in os.environ if name.startswith("ORCHESTRATOR__")]:
    del os.environ[name]

SMALL = (
    "train_tokens=3000",
    "effective_batch=4",
    "evaluations=3",
    "eval_rows=12",
    "test_rows=8",
    "search.samples=1",
    "search.final_share=0",
    "search.dashboard=false",
)


LONGEST = (
    "chaos/test_kill_search.py",
    "integration/test_search.py",
    "execution/test_worker_pool.py",
    "integration/test_trl_two_processes.py",
    "integration/test_head_to_head.py",
    "integration/test_resume_search.py",
    "integration/test_pause_and_resume.py",
    "system/test_demo_learning.py",
    "trl/test_dry_run.py",
    # with --cluster
    "execution/test_worker_group.py",
    "integration/test_search_on_object_store.py",
)
"""Files that take minutes: begun first, so that nobody waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are handed out in the order of their tests."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


def pytest_collection_finish() -> None:
    """Every trial ends with a full garbage collection, which needn't go through all imported modules each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """The demo recipe with trials of about 7 steps, judged on 12 rows."""
    return load_recipe("demo", SMALL, environ={}).recipe


@pytest.fixture(scope="session")
def small_config(small_recipe: Recipe) -> TrialConfig:
    return small_recipe.trial_config({"learning_rate": 3e-3})


@pytest.fixture(scope="session")
def tokenizer(small_recipe: Recipe) -> PreTrainedTokenizerBase:
    from trials.model.loading import load_tokenizer

    return load_tokenizer(small_recipe.model)


@pytest.fixture(scope="session")
def small_data(small_recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TrialData:
    from trials.data.dataset import load_data

    return load_data(small_recipe.data, tokenizer)


@pytest.fixture(scope="session")
def small_trial(
    small_config: TrialConfig,
    small_data: TrialData,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrialRecord:
    """A trial that was really trained: two seconds, once a session. Read it, don't write to its folder."""
    from trials.records.trial_dir import Origin, TrialDir, read_trial
    from trials.system.torch_setup import use_threads
    from trials.training.training_run import Decision, TrainingRun
    from trials.trl.backend import TrlBackend

    folder = TrialDir(tmp_path_factory.mktemp("trained") / "0001")
    folder.begin(small_config, Origin.SINGLE, "demo")
    use_threads(small_config.machine)
    TrlBackend().run(TrainingRun(small_config, small_data, tokenizer, folder, lambda _: Decision.CONTINUE))
    return read_trial(folder.path)


@pytest.fixture
def search(small_recipe: Recipe) -> Search:
    """A made-up search of an hour, ten minutes of which are kept for the export."""
    return make_search(small_recipe)


@pytest.fixture
def run(tmp_path: Path, search: Search) -> RunDir:
    """A run folder that holds only its search."""
    return make_run(tmp_path / "run", search)


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder as the current one, for commands that write to `runs/`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_earlier_searches() -> None:
    """What the searches of other tests measured would plan this one's: on a busy machine, shorter trials."""
    for file in Path(os.environ["HF_DATASETS_CACHE"]).glob("*/speeds.json*"):
        file.unlink(missing_ok=True)


@pytest.fixture
def fake_driver(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """A machine without a GPU, whatever this one has; call it to put some in."""
    yield FakeDriver(tmp_path_factory.mktemp("driver"), monkeypatch)
    gpus._known.cache_clear()


@pytest.fixture
def workshop(
    small_recipe: Recipe, small_data: TrialData, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Workshop:
    from tests.support.trained_trials import Workshop

    return Workshop(small_recipe, small_data, tokenizer, tmp_path)


@pytest.fixture
def engine(workshop: Workshop) -> Iterator[Engine]:
    """An engine for the workshop's trials, of this test alone."""
    from trials.engine.engine import Engine

    engine = Engine(workshop.config().model, workshop.config().machine)
    yield engine
    engine.close()
