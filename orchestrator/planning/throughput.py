"""Measured throughput: seconds per token by configuration group, updated with every evaluation of the search.

Model: log(seconds per token) = level + offset[group] + noise. The level belongs to the machine and drifts; the offset
belongs to a configuration group (`ConfigGroup`) and is constant. So a slow group doesn't make the others look slow,
and a machine that becomes slower is slower for all. Level and offset are estimated by a scalar Kalman filter each, in
constant time per segment; their covariance is ignored. A segment is the part of a trial between two evaluations.

Outliers (a machine that slept, a clock that jumped) are clipped to three standard deviations of the innovation. The
third outlier in a row with the same sign is taken as a change of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from orchestrator.state.search import Consolidation
from trials.config import TrialConfig
from trials.records.trial_dir import Origin, TrialRecord

FIRST_START_SECONDS = 3.0
"""Assumed until a start is measured; about the time that starting a new process takes."""

# Standard deviations of logarithms: 0.1 is about 10 % more or less.
_NOISE = 0.15
_DRIFT = 0.05
_BETWEEN_KINDS = 0.4
_AT_FIRST = 0.5
_SURPRISE = 3.0
"""A segment further off than so many standard deviations is clipped to that."""
_BELIEVED = 3
"""So many outliers in a row with the same sign are taken as a change of the machine."""


class ConfigGroup(NamedTuple):
    """Properties of a configuration that affect its speed: `coarse` ones, and log2 of LoRA rank and effective batch."""

    coarse: tuple[str, ...]
    rank: int
    batch: int


def config_group(config: TrialConfig) -> ConfigGroup:
    """Return the group of a configuration; configurations of one group are assumed to be equally fast."""
    hp = config.hyperparameters
    special = [name for name, on in (("dora", hp.use_dora), ("neftune", hp.neftune_noise_alpha > 0)) if on]
    coarse = (config.machine.engine, *special, *sorted(hp.target_modules))
    return ConfigGroup(coarse, round(math.log2(hp.lora_rank)), round(math.log2(hp.effective_batch)))


@dataclass
class _Level:
    """Estimate of a logarithm: mean and variance."""

    value: float
    variance: float

    def learn(self, error: float, total: float) -> None:
        """Correct the estimate by its share of the innovation `error`, whose variance is `total`."""
        gain = self.variance / total
        self.value += gain * error
        self.variance *= 1 - gain


@dataclass
class _Family:
    """Sum and number of the offsets of groups that differ in LoRA rank and batch only."""

    total: float = 0.0
    kinds: int = 0


class _Estimate:
    """Robust estimate of a positive quantity that drifts, from measurements with outliers."""

    def __init__(self) -> None:
        self.level: _Level | None = None
        self._surprises = 0

    def observe(self, value: float, offset: _Level) -> None:
        """Update the level, and the `offset` of the measurement's group, with one measurement."""
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
            self.level.variance += error**2  # the machine has changed, so the level adapts almost at once
        elif sign:
            error = sign * most
        total = self.level.variance + offset.variance + _NOISE**2
        self.level.learn(error, total)
        offset.learn(error, total)


class ThroughputModel:
    """Measured speed of trials. Every method but `from_records` takes constant time."""

    def __init__(self, consolidation: Consolidation | None = None) -> None:
        """`consolidation`: the change to several GPUs for each trial; None: there was none."""
        self._consolidation = consolidation
        self._gain = None if consolidation is None else _Level(math.log(consolidation.speedup), _BETWEEN_KINDS**2)
        self._speed = _Estimate()
        self._start = _Estimate()
        self._offsets: dict[ConfigGroup, _Level] = {}
        self._families: dict[tuple[str, ...], _Family] = {}
        self._all = _Family()
        self.tokens = 0
        """Trained tokens of all segments observed so far."""
        self.slot_seconds = 0.0
        """Duration of these segments, summed over concurrent trials."""

    @classmethod
    def from_records(
        cls, records: Iterable[TrialRecord], consolidation: Consolidation | None = None
    ) -> ThroughputModel:
        """Return a model rebuilt from the evaluations on disk, trial by trial; the base model is left out."""
        throughput = cls(consolidation)
        for record in records:
            if record.origin is Origin.BASE:
                continue
            at = [(0, 0.0, 1), *((point.tokens_seen, point.seconds, point.ranks) for point in record.points)]
            for (tokens, seconds, _), (more_tokens, more_seconds, ranks) in pairwise(at):
                throughput.observe(record.config, more_tokens - tokens, more_seconds - seconds, ranks)
        return throughput

    def observe(self, config: TrialConfig, tokens: int, seconds: float, ranks: int = 1) -> bool:
        """Observe a segment: from one evaluation of a trial to the end of the next. Return whether it counts.

        A segment without tokens, or whose duration isn't positive and finite, is ignored. `ranks` is the number of
        processes that trained the trial.
        """
        if tokens <= 0 or not 0 < seconds < math.inf:
            return False
        self.tokens += tokens
        self.slot_seconds += seconds
        if self._consolidation is not None and ranks == self._consolidation.ranks:
            self._note_gain(config, seconds / tokens)
            return True
        kind = config_group(config)
        # The first group's offset is fixed at 0, as the others' offsets are relative to it.
        offset = self._offsets.get(kind) or _Level(0.0, _BETWEEN_KINDS**2 if self._offsets else 0.0)
        before = offset.value
        self._speed.observe(seconds / tokens, offset)
        is_new = kind not in self._offsets
        self._offsets[kind] = offset
        for family in (self._families.setdefault(kind.coarse, _Family()), self._all):
            family.total += offset.value - (0.0 if is_new else before)
            family.kinds += is_new
        return True

    def observe_start(self, seconds: float) -> None:
        """Observe the seconds from dispatching a trial to its first step; ignored unless positive and finite."""
        if 0 < seconds < math.inf:
            self._start.observe(seconds, _Level(0.0, 0.0))

    def change_slots(self, factor: float) -> None:
        """Record that a worker has `factor` times as many trials at once, and gets as much done in all."""
        if self._speed.level is not None:
            self._speed.level.value += math.log(factor)

    @property
    def start_seconds(self) -> float:
        """Seconds that starting or resuming a trial takes."""
        level = self._start.level
        return FIRST_START_SECONDS if level is None else math.exp(level.value)

    def seconds_per_token(self, config: TrialConfig | None = None) -> float | None:
        """Return the speed of one concurrent trial, evaluations included; None before the first measurement.

        For a new group it uses the mean offset of the groups that differ in LoRA rank and batch only. Without such
        groups, or without `config`, it uses the mean offset of all groups.
        """
        if self._speed.level is None:
            return None
        gain = 0.0 if self._gain is None else self._gain.value
        return math.exp(self._speed.level.value + self._offset(config) - gain)

    @property
    def speedup(self) -> float | None:
        """Speedup of a trial by several GPUs since consolidation; None without consolidation."""
        return None if self._gain is None else math.exp(self._gain.value)

    def _note_gain(self, config: TrialConfig, each: float) -> None:
        """Update the speedup by several GPUs. Level and offsets were measured before consolidation, and stay."""
        if self._gain is not None and self._speed.level is not None:
            error = self._speed.level.value + self._offset(config) - math.log(each) - self._gain.value
            self._gain.learn(error, self._gain.variance + _NOISE**2)

    def seconds(self, config: TrialConfig | None, tokens: float) -> float | None:
        """Return the seconds for `tokens` of one trial; None before the first measurement."""
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
