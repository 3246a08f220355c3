from orchestrator.scheduling.bids import Bids


def test_the_highest_of_what_is_bid_now() -> None:
    bids = Bids()
    assert bids.best() is None
    for trial_id, bid in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        bids.put(trial_id, bid)
    assert bids.best() == ("b", 3.0)
    bids.put("b", 0.5)
    assert bids.best() == ("c", 2.0)
    assert bids.ranked() == ["c", "a", "b"]
    bids.withdraw("c")
    assert bids.best() == ("a", 1.0)
    bids.put("a", 0.1)
    bids.put("b", 0.1)
    assert bids.best() == ("a", 0.1)
    bids.withdraw("a")
    bids.withdraw("b")
    assert bids.best() is None
