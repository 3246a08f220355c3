"""One cache, two users: what is another's is read, and never touched, renamed or removed."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from orchestrator.planning.speed_cache import save_speed, speed_before
from orchestrator.planning.throughput import ThroughputModel
from orchestrator.state.search import Placement, Search
from search_spaces.loader import RECIPE_FOLDER
from search_spaces.schema import Recipe
from tests.support.cli import ROOT
from trials.config import DataSettings, ModelSettings
from trials.data.cache import cache_folder
from trials.data.dataset import load_data
from trials.errors import DataError
from trials.model.quantized_cache import load_quantized_base
from trials.system.shared_cache import write_entry

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")]
OTHER = 12_345
READABLE, WRITABLE = 0o755, 0o1777


@contextmanager
def as_user(number: int, home: Path) -> Iterator[None]:
    """This process as that user, whose home (and so cache) is another folder; the kernel refuses what it would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(number)
        os.seteuid(number)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that both may enter, with the first one's cache and a home of the other's."""
    if not all(folder.stat().st_mode & 0o001 for folder in (ROOT, *ROOT.parents)):
        pytest.skip("another user can't enter this checkout, whose data the tests read")
    place = Path(tempfile.mkdtemp(prefix="two-users-"))
    place.chmod(0o755)
    for name in ("datasets", "nf4"):
        (place / name).mkdir()
    (place / "home").mkdir(mode=0o700)
    os.chown(place / "home", OTHER, OTHER)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "first"))
    yield place
    shutil.rmtree(place)


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What of this user's lies there: owner, size and time of change of all files and folders."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (s.st_uid, s.st_size, s.st_ctime_ns) for name, s in found.items() if s.st_uid == 0}


@pytest.fixture
def settings(small_recipe: Recipe) -> DataSettings:
    """A few rows."""
    file = small_recipe.data.eval
    return small_recipe.data.model_copy(update={"train": f"{file}[:40]", "eval": f"{file}[40:60]", "test": None})


def files_of_other(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.stat().st_uid == OTHER]


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize("mode", [READABLE, WRITABLE])
def test_a_second_user_has_rows_of_its_own_where_it_cannot_read_the_firsts(
    place: Path, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, mode: int, *, damage: bool
) -> None:
    first = load_data(settings, tokenizer)
    folder = cache_folder() / first.fingerprint
    cache_folder().chmod(mode)
    if damage:
        folder.chmod(0o755)
        (folder / "train.arrow").write_bytes(b"")
    before = state(cache_folder())
    with as_user(OTHER, place / "home"):
        for _ in range(2):
            second = load_data(settings, tokenizer)
            assert second.fingerprint == first.fingerprint
            assert len(second.train) == len(first.train)
    own = cache_folder() if mode == WRITABLE else place / "home" / "qlora-orchestrator" / "rows"
    assert state(cache_folder()) == before
    assert files_of_other(cache_folder(), place / "home") == files_of_other(own) != []


def test_what_the_first_one_lets_others_read_is_read(
    place: Path, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = cache_folder() / load_data(settings, tokenizer).fingerprint
    folder.chmod(0o755)
    before = state(place)
    with as_user(OTHER, place / "home"):
        load_data(settings, tokenizer)
    assert state(place) == before
    assert files_of_other(place) == []


def test_where_rows_can_be_written_nowhere_one_error_says_so(
    place: Path, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> None:
    (place / "home").chmod(0o500)
    with as_user(OTHER, place / "home"), pytest.raises(DataError, match=r"can't write tokenised rows .*set HF_HOME"):
        load_data(settings, tokenizer)


def test_rows_of_ones_own_that_are_damaged_are_made_anew(
    place: Path, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = load_data(settings, tokenizer)
    folder = cache_folder() / first.fingerprint
    for name in ("train.arrow", "eval.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])
        assert len(load_data(settings, tokenizer).train) == len(first.train)
        assert folder.with_name(f"{folder.name}.damaged").is_dir()


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize("mode", [READABLE, WRITABLE])
def test_a_second_user_reads_the_firsts_saved_model_and_leaves_it_alone_where_it_is_damaged(
    place: Path, caplog: pytest.LogCaptureFixture, mode: int, *, damage: bool
) -> None:
    settings, root = ModelSettings(name=str(RECIPE_FOLDER / "demo" / "base")), place / "nf4"
    load_quantized_base(settings, root, least_bytes=0)
    root.chmod(mode)
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    assert folder.stat().st_mode & 0o005
    if damage:
        (folder / "model.safetensors").write_bytes(b"")
    before = state(root)
    with caplog.at_level(logging.WARNING), as_user(OTHER, place / "home"):
        for _ in range(2):
            load_quantized_base(settings, root, least_bytes=0)
    assert state(root) == before
    assert ("it's left alone" in caplog.text) is damage
    saved = files_of_other(root if mode == WRITABLE else place / "home")
    assert ("model.safetensors" in {path.name for path in saved}) is damage
    assert len(files_of_other(place)) == len(saved)


def test_a_second_users_speeds_are_kept_beside_the_firsts(place: Path, search: Search, small_recipe: Recipe) -> None:
    def throughput(seconds: float) -> ThroughputModel:
        throughput = ThroughputModel()
        throughput.observe(small_recipe.trial_config({}), 1000, seconds)
        throughput.observe_start(0.5)
        return throughput

    placed = replace(search, placement=Placement(1, 1))
    save_speed(placed, throughput(2.0))
    cache_folder().chmod(WRITABLE)
    before = state(cache_folder())
    first = speed_before(placed)
    with as_user(OTHER, place / "home"):
        assert speed_before(placed) == first
        save_speed(placed, throughput(4.0))
        second = speed_before(placed)
        assert second is not None
        assert second != first
    assert state(cache_folder()) == before
    assert speed_before(placed) == first


def test_an_entry_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_entry(tmp_path / "entry", fail)
    assert list(tmp_path.iterdir()) == []
