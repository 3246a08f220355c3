"""The error tree: what a command's exit code says about what happened."""

from __future__ import annotations

import pytest

from trials import errors


@pytest.mark.parametrize("error", [errors.RecipeError, errors.DataError, errors.ModelError, errors.RunFolderError])
def test_bad_input_ends_with_2(error: type[errors.TuningError]) -> None:
    assert issubclass(error, errors.InputError)
    assert error("").exit_code == 2


@pytest.mark.parametrize("error", [errors.NothingToExport, errors.ExportNotVerified])
def test_a_search_without_an_export_ends_with_3(error: type[errors.TuningError]) -> None:
    assert not issubclass(error, errors.InputError)
    assert error("").exit_code == 3


def test_interrupted_ends_with_130() -> None:
    assert (errors.EXIT_DONE, errors.EXIT_INTERRUPTED) == (0, 130)
