"""What trials take: seconds a token by kind of configuration, measured all through the search.

The logarithm of seconds per token is taken as the machine's level, which drifts, plus an offset of the configuration's
kind, which stays: a Kalman filter over both, one multiplication a segment. So a slow kind doesn't make the others look
slow, and a machine that became slower is slower for all. What is far from expected is cut to what could be expected (a
machine that slept, a clock that jumped); when the next two segments say the same, it's believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from orchestrator.state.regrouped import Consolidation
from trials.config import TrialConfig
from trials.records.trial_dir import Origin, TrialRecord

FIRST_START_SECONDS = 3.0
"""Before one was measured: a process that isn't kept takes about so long."""

# Standard deviations of logarithms: 0.1 is a tenth more or less.
_NOISE = 0.15
_DRIFT = 0.05
_BETWEEN_KINDS = 0.4
_AT_FIRST = 0.5
_SURPRISE = 3.0
"""So many standard deviations off, a segment is cut to that."""
_BELIEVED = 3
"""So many surprises in a row, all up or all down, aren't accidents."""


class ConfigGroup(NamedTuple):
    """What changes the speed of a configuration; ranks and batches by their power of two."""

    coarse: tuple[str, ...]
    rank: int
    batch: int


def config_group(config: TrialConfig) -> ConfigGroup:
    """The kind of a configuration: equal ones are taken to be equally fast."""
    hp = config.hyperparameters
    special = [name for name, on in (("dora", hp.use_dora), ("neftune", hp.neftune_noise_alpha > 0)) if on]
    coarse = (config.machine.engine, *special, *sorted(hp.target_modules))
    return ConfigGroup(coarse, round(math.log2(hp.lora_rank)), round(math.log2(hp.effective_batch)))


@dataclass
class _Level:
    """A logarithm that is estimated: its value and variance."""

    value: float
    variance: float

    def learn(self, error: float, total: float) -> None:
        """Takes its share of an error whose variance is `total`."""
        gain = self.variance / total
        self.value += gain * error
        self.variance *= 1 - gain


@dataclass
class _Family:
    """Offsets of kinds that differ in rank and batch only."""

    total: float = 0.0
    kinds: int = 0


class _Estimate:
    """Of a positive quantity that drifts, from measurements of which some are far off."""

    def __init__(self) -> None:
        self.level: _Level | None = None
        self._surprises = 0

    def observe(self, value: float, offset: _Level) -> None:
        """Takes in one measurement; `offset` learns its share."""
        if self.level is None:
            self.level = _Level(math.log(value), _AT_FIRST**2)
            return
        self.level.variance += _DRIFT**2
        error = math.log(value) - self.level.value - offset.value
        total = self.level.variance + offset.variance + _NOISE**2
        most = _SURPRISE * math.sqrt(total)
        sign = (error > most) - (error < -most)
        self._surprises = self._surprises + sign if sign * self._surprises > 0 else sign
        if abs(self._surprises) >= _BELIEVED:
            self.level.variance += error**2  # the machine has changed
        elif sign:
            error = sign * most
        total = self.level.variance + offset.variance + _NOISE**2
        self.level.learn(error, total)
        offset.learn(error, total)


class ThroughputModel:
    """Measured speed; every method takes the same short time however much was measured."""

    def __init__(self, regrouped: Consolidation | None = None) -> None:
        """`regrouped`: from some moment on, several processes train each trial together; None: it's always alike."""
        self._regrouped = regrouped
        self._gain = None if regrouped is None else _Level(math.log(regrouped.speedup), _BETWEEN_KINDS**2)
        self._speed = _Estimate()
        self._start = _Estimate()
        self._offsets: dict[ConfigGroup, _Level] = {}
        self._families: dict[tuple[str, ...], _Family] = {}
        self._all = _Family()
        self.tokens = 0
        """Trained so far in all segments that were noted."""
        self.slot_seconds = 0.0
        """The time that they took, summed over trials side by side."""

    @classmethod
    def from_records(cls, records: Iterable[TrialRecord], regrouped: Consolidation | None = None) -> ThroughputModel:
        """As measured before: rebuilt from the evaluations on disk, trial by trial."""
        throughput = cls(regrouped)
        for record in records:
            if record.origin is Origin.BASE:
                continue
            at = [(0, 0.0, 1), *((point.tokens_seen, point.seconds, point.ranks) for point in record.points)]
            for (tokens, seconds, _), (more_tokens, more_seconds, ranks) in pairwise(at):
                throughput.observe(record.config, more_tokens - tokens, more_seconds - seconds, ranks)
        return throughput

    def observe(self, config: TrialConfig, tokens: int, seconds: float, ranks: int = 1) -> None:
        """A segment of one trial from one evaluation to the next, that evaluation included; nonsense is left out."""
        if tokens <= 0 or not 0 < seconds < math.inf:
            return
        self.tokens += tokens
        self.slot_seconds += seconds
        if self._regrouped is not None and ranks == self._regrouped.ranks:
            self._note_gain(config, seconds / tokens)
            return
        kind = config_group(config)
        # The first kind of all has no offset: it's what the others are measured against.
        offset = self._offsets.get(kind) or _Level(0.0, _BETWEEN_KINDS**2 if self._offsets else 0.0)
        before = offset.value
        self._speed.observe(seconds / tokens, offset)
        is_new = kind not in self._offsets
        self._offsets[kind] = offset
        for family in (self._families.setdefault(kind.coarse, _Family()), self._all):
            family.total += offset.value - (0.0 if is_new else before)
            family.kinds += is_new

    def observe_start(self, seconds: float) -> None:
        """From handing a trial out to its first step."""
        if 0 < seconds < math.inf:
            self._start.observe(seconds, _Level(0.0, 0.0))

    @property
    def start_seconds(self) -> float:
        """What starting or resuming a trial takes."""
        level = self._start.level
        return FIRST_START_SECONDS if level is None else math.exp(level.value)

    def seconds_per_token(self, config: TrialConfig | None = None) -> float | None:
        """Of one trial beside the others, evaluations included; None before anything was measured.

        Of a kind that's new: what its like take, with other ranks and batches; else all kinds' mean, as without config.
        """
        if self._speed.level is None:
            return None
        gain = 0.0 if self._gain is None else self._gain.value
        return math.exp(self._speed.level.value + self._offset(config) - gain)

    @property
    def speedup(self) -> float | None:
        """How many times as fast a trial is since they were regrouped; None: they weren't."""
        return None if self._gain is None else math.exp(self._gain.value)

    def _note_gain(self, config: TrialConfig, each: float) -> None:
        """What a token takes apart was measured long before: all that differs now is for being trained together."""
        if self._gain is not None and self._speed.level is not None:
            error = self._speed.level.value + self._offset(config) - math.log(each) - self._gain.value
            self._gain.learn(error, self._gain.variance + _NOISE**2)

    def seconds(self, config: TrialConfig | None, tokens: float) -> float | None:
        """For so many tokens of one trial; None before anything was measured."""
        each = self.seconds_per_token(config)
        return None if each is None else each * tokens

    def _offset(self, config: TrialConfig | None) -> float:
        if config is not None:
            kind = config_group(config)
            if kind in self._offsets:
                return self._offsets[kind].value
            family = self._families.get(kind.coarse, self._all)
        else:
            family = self._all
        return family.total / family.kinds
