"""A trial put back to any of its checkpoints, whatever it did before: nothing is lost, and nothing later stays."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.checkpoint_dirs import trained
from trials.config import TrialConfig
from trials.records.checkpoints import whole_checkpoints
from trials.records.rewind import restore_newest_checkpoint, rewind
from trials.records.trial_dir import Ending, Origin, TrialRecord, read_trial
from trials.state import TrialState

LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0]), min_size=1, max_size=7)
STEPS = st.sets(st.integers(1, 7), min_size=1, max_size=4)
ENDINGS = st.sampled_from([None, *(Ending(kind, "made up") for kind in TrialState if kind.is_terminal)])
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def steps(record: TrialRecord) -> tuple[list[int], list[int]]:
    return [point.step for point in record.points], [scoring.step for scoring in record.scorings]


def weights(record: TrialRecord) -> str | None:
    file = record.adapter / "adapter_model.safetensors"
    return file.read_text(encoding="utf-8") if file.exists() else None


def checkpoints(folder: Path) -> list[int]:
    return [found.step for found in whole_checkpoints(folder)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LOSSES, STEPS, ENDINGS, st.data())
def test_what_stands_afterwards_is_what_stood_at_the_checkpoint(
    small_config: TrialConfig, losses: list[float], saved: set[int], ending: Ending | None, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        until = data.draw(st.sampled_from(sorted(saved)), label="checkpoint")
        there = trained(Path(place) / "there", small_config, losses[:until], checkpoints=sorted(saved))
        before = trained(
            Path(place) / "trial",
            small_config,
            losses,
            checkpoints=sorted(saved),
            ending=ending,
            origin=Origin.PROPOSED,
        )
        had, newest = weights(before), max(saved)
        (checkpoint,) = (found for found in whole_checkpoints(before.folder) if found.step == until)
        kept = rewind(before, checkpoint)
        after = read_trial(before.folder)
        assert after.ending is None
        assert [p.eval_loss for p in after.points] == losses[:until]
        assert steps(after) == steps(there)
        assert (after.best_eval_loss, weights(after)) == (there.best_eval_loss, weights(there))
        assert after.row_losses() == there.row_losses()
        assert checkpoints(after.folder) == [step for step in sorted(saved) if step <= until]
        came_later = ending is not None or newest > until or len(losses) > until
        assert (kept is not None) is came_later
        if kept is not None:
            aside = read_trial(kept)
            assert (aside.points, aside.ending, weights(aside)) == (before.points, ending, had)
            assert checkpoints(kept) == [step for step in sorted(saved) if step > until]
        assert rewind(after, checkpoint) is None, "it's there already"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LOSSES, STEPS, st.data())
def test_a_trial_goes_on_from_the_newest_checkpoint_that_is_whole(
    small_config: TrialConfig, losses: list[float], saved: set[int], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        record = trained(Path(place) / "trial", small_config, losses, checkpoints=sorted(saved), origin=Origin.PROPOSED)
        damaged = data.draw(st.sets(st.sampled_from(sorted(saved))), label="damaged")
        for step in damaged:
            (record.folder / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
        newest = max(saved - damaged, default=None)
        found = restore_newest_checkpoint(read_trial(record.folder))
        after = read_trial(record.folder)
        assert (found.step if found else None) == newest
        assert [p.eval_loss for p in after.points] == losses[: newest or 0]
        assert (weights(after) is None) is (newest is None)
        assert checkpoints(after.folder) == sorted(saved - damaged)
