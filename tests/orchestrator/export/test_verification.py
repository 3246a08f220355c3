from pathlib import Path

import pytest

from orchestrator.export.verification import allowed_difference, check_loss, verify_export
from search_spaces.schema import Recipe
from trials.errors import ExportNotVerified


def test_a_loss_within_the_tolerance_passes() -> None:
    check_loss("the export", 1.0009, 1.0, 1e-3)


@pytest.mark.parametrize("loss", [1.0011, 0.9989, float("nan")])
def test_a_loss_outside_is_an_error_that_names_both(loss: float) -> None:
    with pytest.raises(ExportNotVerified, match=r"has eval loss .*, but the trial measured 1\.00000"):
        check_loss("the export", loss, 1.0, 1e-3)


def test_a_loss_in_bfloat16_may_differ_by_its_rounding() -> None:
    assert allowed_difference(0.8974, {"is_rounded": True}) > 0.8986 - 0.8974  # as seen on an H200
    assert allowed_difference(0.8974, {"is_rounded": False}) == 1e-3
    assert allowed_difference(0.01, {"is_rounded": True}) == 1e-3


def test_an_export_that_cannot_be_loaded_is_not_verified(tmp_path: Path, small_recipe: Recipe) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportNotVerified, match=r"could not be loaded again \(exit code \d\)"):
        verify_export(tmp_path, small_recipe, 1.0, merge=False)
