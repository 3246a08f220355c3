import pytest

from trials.records.trial_dir import Ending
from trials.state import TrialState

TERMINAL = {"finished", "pruned", "out_of_time", "early_stopped", "diverged", "out_of_memory", "failed"}


def test_states_have_the_values_of_ending_json() -> None:
    assert {state.value for state in TrialState if state.is_terminal} == TERMINAL
    assert {state.value for state in TrialState} == {"running", "paused", *TERMINAL}


def test_a_state_is_complete_or_infeasible_or_neither() -> None:
    assert {state for state in TrialState if state.is_complete} == {TrialState.FINISHED, TrialState.EARLY_STOPPED}
    assert {state for state in TrialState if state.is_infeasible} == {TrialState.DIVERGED, TrialState.OUT_OF_MEMORY}


@pytest.mark.parametrize("state", TrialState)
def test_a_trial_ends_in_a_terminal_state_only(state: TrialState) -> None:
    if state.is_terminal:
        assert Ending(state, "made up").kind is state
    else:
        with pytest.raises(ValueError, match=f"a trial can't end as {state.value}"):
            Ending(state, "made up")
