"""Out-of-memory (OOM) events and verified fits of the micro-batches of one engine.

Predictions can be wrong: other processes use the GPU too, and allocators waste some memory. An event applies beside as
many bytes of base model and adapters as when it occurred, or more. Once trials have left, larger micro-batches are
allowed again; memory that other processes free may be used again. Events only make plans smaller. That a trial doesn't
fit at all is decided by trying it, never by an event.
"""

from __future__ import annotations

from dataclasses import dataclass

from trials.model.memory_plan import MicroBatchPlan

_GIVEN_BACK_BYTES = 2**28
"""Memory that other processes must have freed since an event, before its limit in tokens is lifted."""


@dataclass(frozen=True)
class TrialFootprint:
    """Memory needs of a trial, known before it starts."""

    adapter_bytes: int
    longest_row: int
    """Tokens of the longest row of training and evaluation."""
    step_tokens: float
    """Tokens of a mean optimizer step, on one rank."""


@dataclass(frozen=True)
class OomEvent:
    """Out-of-memory event: the limits that follow from it, and the memory at the time."""

    other_bytes: int
    """Bytes of base model and adapters at the time."""
    most_tokens: int | None
    """Limit of a micro-batch in tokens from now on; None: a plan for less memory is used instead."""
    usable_bytes: int | None
    """Limit in bytes of base model, adapters and micro-batches together from now on; None: unchanged."""
    available_bytes: int | None = None
    """GPU memory that was free or reserved by this process at the time; None: unknown."""

    def given_back(self, available_bytes: int | None) -> int:
        """Return the bytes that other processes have freed since, with `available_bytes` now; 0 if that is unknown."""
        if self.available_bytes is None or available_bytes is None:
            return 0
        return max(0, available_bytes - self.available_bytes)


@dataclass(frozen=True)
class VerifiedFit:
    """Proof that a micro-batch of the longest rows, an optimizer step and an evaluation fitted when they were tried."""

    plan: MicroBatchPlan
    tokens: int
    other_bytes: int
    footprint: TrialFootprint
    peak_bytes: int | None
    """Peak bytes of everything on the GPU during the try; None on a CPU."""

    def covers(self, plan: MicroBatchPlan, tokens: int, other_bytes: int, footprint: TrialFootprint) -> bool:
        """Return whether the arguments need no more memory; the plans must agree in all but their tokens."""
        asked = (tokens, other_bytes, footprint.adapter_bytes, footprint.longest_row)
        shown = (self.tokens, self.other_bytes, self.footprint.adapter_bytes, self.footprint.longest_row)
        is_same_split = (plan.keep, plan.dense_layers) == (self.plan.keep, self.plan.dense_layers)
        return is_same_split and all(one <= other for one, other in zip(asked, shown, strict=True))


class OomHistory:
    """OOM events and verified fits of one engine. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._oom_events: list[OomEvent] = []
        self._proofs: list[VerifiedFit] = []

    def add_oom(self, oom_event: OomEvent) -> None:
        """Record that memory ran out."""
        self._oom_events.append(oom_event)

    @property
    def ooms(self) -> int:
        """Number of recorded events."""
        return len(self._oom_events)

    def forget_after(self, oom_events: int) -> None:
        """Forget all but the first `oom_events` events; those of an infeasible trial say nothing about others."""
        del self._oom_events[oom_events:]

    def add_fit(self, proof: VerifiedFit) -> None:
        """Record that a dry run fitted."""
        self._proofs.append(proof)

    def usable_bytes(self, other_bytes: int, allowed_bytes: int, least_bytes: int, available_bytes: int | None) -> int:
        """Return how many of `allowed_bytes` a plan may count on; `least_bytes` is the least that any plan needs.

        An event whose limit is below `least_bytes` is ignored. It comes from smaller trials; what larger ones need is
        found by trying.
        """
        known = [
            each.usable_bytes + each.given_back(available_bytes)
            for each in self._applying(other_bytes)
            if each.usable_bytes is not None
        ]
        return min([allowed_bytes, *(usable for usable in known if usable >= least_bytes)])

    def most_tokens(self, other_bytes: int, planned: int, available_bytes: int | None) -> int:
        """Return the limit of a micro-batch in tokens: `planned`, or less after events that apply."""
        known = [
            each.most_tokens
            for each in self._applying(other_bytes)
            if each.most_tokens is not None and each.given_back(available_bytes) < _GIVEN_BACK_BYTES
        ]
        return min([planned, *known])

    def verified_fit(
        self, plan: MicroBatchPlan, tokens: int, other_bytes: int, footprint: TrialFootprint
    ) -> VerifiedFit | None:
        """Return a proof that such a micro-batch fits; None: it has to be tried."""
        return next((each for each in self._proofs if each.covers(plan, tokens, other_bytes, footprint)), None)

    def _applying(self, other_bytes: int) -> list[OomEvent]:
        return [each for each in self._oom_events if each.other_bytes <= other_bytes]
