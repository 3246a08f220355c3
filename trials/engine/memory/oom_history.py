"""What micro-steps have shown about this machine's memory: where it ran out, and for what it sufficed.

Predictions can be wrong: others use the GPU too, and allocators waste some. What was learned beside so many bytes of
adapters holds beside as many or more; where trials have left, it may fit again, and what other processes give back may
be used again. A shortage makes plans smaller; that a trial fits in no way isn't for it to say, but for an attempt.
"""

from __future__ import annotations

from dataclasses import dataclass

from trials.model.memory_plan import MicroBatchPlan

_GIVEN_BACK_BYTES = 2**28
"""Of memory that other processes have given back: with less, as few tokens fit as before."""


@dataclass(frozen=True)
class TrialFootprint:
    """What a trial brings along."""

    adapter_bytes: int
    longest_row: int
    """In tokens, of training and evaluation."""
    step_tokens: float
    """Of a mean optimizer step."""


@dataclass(frozen=True)
class OomEvent:
    """Memory ran out."""

    other_bytes: int
    """Of base model and adapters that were there."""
    most_tokens: int | None
    """Of a micro-step from now on; None: a plan for less memory is to take care of it."""
    usable_bytes: int | None
    """Of base model, adapters and micro-steps together, that a plan counts on from now on; None: as before."""
    available_bytes: int | None = None
    """Of the GPU's memory that this process had, or could have had, when it ran out; None: nobody knows."""

    def given_back(self, available_bytes: int | None) -> int:
        """By other processes since then, where so many are available now."""
        if self.available_bytes is None or available_bytes is None:
            return 0
        return max(0, available_bytes - self.available_bytes)


@dataclass(frozen=True)
class VerifiedFit:
    """A micro-step of the longest rows, an optimizer step and an evaluation were tried, and fitted."""

    plan: MicroBatchPlan
    tokens: int
    other_bytes: int
    footprint: TrialFootprint
    peak_bytes: int | None
    """Of everything on the GPU meanwhile; None on a CPU."""

    def covers(self, plan: MicroBatchPlan, tokens: int, other_bytes: int, footprint: TrialFootprint) -> bool:
        """Whether nothing of this asks for more."""
        asked = (tokens, other_bytes, footprint.adapter_bytes, footprint.longest_row)
        shown = (self.tokens, self.other_bytes, self.footprint.adapter_bytes, self.footprint.longest_row)
        is_same_split = (plan.keep, plan.dense_layers) == (self.plan.keep, self.plan.dense_layers)
        return is_same_split and all(one <= other for one, other in zip(asked, shown, strict=True))


class OomHistory:
    """Of one engine. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._oom_events: list[OomEvent] = []
        self._proofs: list[VerifiedFit] = []

    def add_oom(self, oom_event: OomEvent) -> None:
        """Takes in that memory didn't suffice."""
        self._oom_events.append(oom_event)

    @property
    def ooms(self) -> int:
        """How often memory ran out."""
        return len(self._oom_events)

    def forget_after(self, oom_events: int) -> None:
        """Takes back what was learned from a trial that fits in no way: it says nothing of the others."""
        del self._oom_events[oom_events:]

    def add_fit(self, proof: VerifiedFit) -> None:
        """Takes in that it did."""
        self._proofs.append(proof)

    def usable_bytes(self, other_bytes: int, allowed_bytes: int, least_bytes: int, available_bytes: int | None) -> int:
        """Of `allowed_bytes`, those that a plan may count on, where none has fewer than `least_bytes`.

        Where a shortage leaves fewer, it was one of smaller trials: what larger ones need is found out by trying.
        """
        known = [
            each.usable_bytes + each.given_back(available_bytes)
            for each in self._applying(other_bytes)
            if each.usable_bytes is not None
        ]
        return min([allowed_bytes, *(usable for usable in known if usable >= least_bytes)])

    def most_tokens(self, other_bytes: int, planned: int, available_bytes: int | None) -> int:
        """Of a micro-step, at most `planned`."""
        known = [
            each.most_tokens
            for each in self._applying(other_bytes)
            if each.most_tokens is not None and each.given_back(available_bytes) < _GIVEN_BACK_BYTES
        ]
        return min([planned, *known])

    def verified_fit(
        self, plan: MicroBatchPlan, tokens: int, other_bytes: int, footprint: TrialFootprint
    ) -> VerifiedFit | None:
        """That such a micro-step fits; None: it has to be tried."""
        return next((each for each in self._proofs if each.covers(plan, tokens, other_bytes, footprint)), None)

    def _applying(self, other_bytes: int) -> list[OomEvent]:
        return [each for each in self._oom_events if each.other_bytes <= other_bytes]
