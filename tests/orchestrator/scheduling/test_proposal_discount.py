import math

import pytest

from orchestrator.scheduling.proposal_discount import ProposalDiscount


def test_at_first_promises_are_believed() -> None:
    discount = ProposalDiscount()
    discount.record_predicted("1", -math.inf)  # nothing promised, nothing to be learned
    discount.record_predicted("2", math.inf)
    discount.record_realised("1", 1.0)
    discount.record_realised("2", 1.0)
    assert discount.factor == 1.0


def test_promises_that_are_kept_in_part_count_in_part() -> None:
    discount = ProposalDiscount()
    for number in range(40):
        discount.record_predicted(f"{number}", math.log(2.0))
        discount.record_realised(f"{number}", math.log(0.5))
    assert discount.factor == pytest.approx(0.25, abs=0.02)


def test_a_promise_is_settled_once_and_a_windfall_counts_in_bounds() -> None:
    discount = ProposalDiscount()
    discount.record_predicted("1", 0.0)
    discount.record_realised("1", math.log(1000.0))
    after = discount.factor
    assert 1 < after < 2.5
    discount.record_realised("1", -math.inf)
    assert discount.factor == after


def test_what_the_space_has_no_more_of_is_noticed_soon() -> None:
    discount = ProposalDiscount()
    for number in range(60):
        discount.record_predicted(f"{number}", 0.0)
        discount.record_realised(f"{number}", 0.0 if number < 40 else math.log(0.1))
    assert discount.factor < 0.25
