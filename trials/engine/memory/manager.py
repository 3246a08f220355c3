"""Memory manager of micro-batches, which divides memory anew when trials are admitted or released."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from trials.config import Hyperparameters, Machine
from trials.data.dataset import TrialData
from trials.engine.lora.adapter import parameter_count
from trials.engine.memory.oom_history import OomEvent, OomHistory, TrialFootprint, VerifiedFit
from trials.engine.model.activations import ActivationBuffers
from trials.engine.model.captured_passes import Capture, GraphCapture, NoCapture
from trials.engine.model.frozen_base import FrozenDecoder
from trials.model.activation_policy import ActivationPolicy
from trials.model.memory_plan import (
    CAPTURED_TOKENS,
    MOST_OF_GPU,
    MOST_TOKENS,
    DeviceRates,
    MicroBatchPlan,
    adapter_bytes,
    captured_bytes,
    memory_bytes,
    plan,
    seconds_per_token,
)
from trials.records.memory_report import MemoryReport
from trials.system.oom import is_out_of_memory

_WORTH_MOVING = 1.02
"""Speed-up above which memory is divided anew for a plan that is expected to be faster."""
_LONG_STEP = 1.2
"""Tokens of an optimizer step that plans allow for, relative to the mean: rows are drawn at random."""

_SOME_RATES = DeviceRates(165e12, 0.9e12)
"""Rates of an RTX 4090: plans depend on the ratio of the two, which is similar on cards of one generation."""

Learn = Callable[[int, int], int | None]
"""Takes the tokens and the rows with which memory ran out, and returns the limit in tokens from now on.

None: it was a single row, and no plan needs less memory.
"""


class MemoryManager:
    """Plans how large micro-batches may be beside the adapters that are present. Belongs to the loop's thread."""

    def __init__(self, frozen: FrozenDecoder, machine: Machine) -> None:
        """Raise torch's error if not even a single token fits."""
        self._frozen = frozen
        self._sizes = frozen.sizes
        self._machine = machine
        on_gpu = frozen.device.type == "cuda"
        self._base_bytes = torch.cuda.memory_allocated() if on_gpu else 0
        self._rates = device_rates(frozen.device)
        self._footprints: dict[int, TrialFootprint] = {}
        self._available_bytes = available_bytes()
        captures = on_gpu and machine.cuda_graphs and self._sizes.is_captured
        self.capture: Capture = GraphCapture() if captures else NoCapture()
        """Captures training passes."""
        self.oom_history = OomHistory()
        # Starts with an empty plan: `_replan` then handles a shortage when the engine opens like any later one.
        self.plan = MicroBatchPlan(0, (ActivationPolicy.RECOMPUTE_ALL,) * self._sizes.layers)
        self.buffers = ActivationBuffers(frozen, self.plan.tokens, self.plan.keep)
        self._replan()

    def admit(self, key: int, footprint: TrialFootprint) -> None:
        """Admit a trial, and plan anew. Raises torch's error if memory doesn't suffice."""
        self._available_bytes = available_bytes()
        self._footprints[key] = footprint
        try:
            self._replan()
        except Exception:
            self.release(key)
            raise

    def release(self, key: int) -> None:
        """Release a trial's memory, and plan anew."""
        self._available_bytes = available_bytes()
        del self._footprints[key]
        self._replan()

    @property
    def max_tokens(self) -> int:
        """Limit of a micro-batch in tokens; a single row may exceed it."""
        return max(1, self.oom_history.most_tokens(self._other_bytes, self.plan.tokens, self._available_bytes))

    @property
    def is_least(self) -> bool:
        """Whether no plan needs less memory than the present one."""
        return self.buffers.tokens > 0 and (self._rates is None or self.plan == self._least)

    def on_oom(self, tokens: int) -> None:
        """Record that memory ran out with a micro-batch of `tokens`, and plan anew.

        On a GPU the next plan uses less memory. On a CPU, or if no plan needs less, half of `tokens` is the new limit.
        The record applies whenever base model and adapters take as many bytes as now, or more.
        """
        self._available_bytes = available_bytes()
        self.oom_history.add_oom(self._oom_event(self.plan, tokens))
        self._replan()

    @property
    def predicted_bytes(self) -> int:
        """Predicted bytes of everything in memory, at the worst moment of a micro-batch."""
        captured = captured_bytes(self._sizes) if self.capture.is_possible else 0
        return memory_bytes(self._sizes, self.plan, self._other_bytes) + captured

    def verified_fit(self, key: int) -> VerifiedFit | None:
        """Return the proof that the largest micro-batch with this trial fits; None: it has to be tried."""
        return self.oom_history.verified_fit(self.plan, self.max_tokens, self._other_bytes, self._footprints[key])

    def memory_report(self, key: int) -> MemoryReport:
        """Return how a trial fits into memory under the present plan; the peak is that of the whole process."""
        rows = max(1, self.max_tokens // self._footprints[key].longest_row)
        peak = torch.cuda.max_memory_allocated() if self._rates else None
        return MemoryReport(self.predicted_bytes, peak, rows, self.plan.recomputed > 0)

    def record_fit(self, key: int, peak_bytes: int | None) -> VerifiedFit:
        """Record that the largest micro-batch with this trial was tried and fitted; return the proof."""
        proof = VerifiedFit(self.plan, self.max_tokens, self._other_bytes, self._footprints[key], peak_bytes)
        self.oom_history.add_fit(proof)
        return proof

    def _replan(self) -> None:
        best = self._best()
        while self._is_to_move(best):
            try:
                self._move(best)
            except Exception as error:
                oom_event = self._oom_event(best, best.tokens)
                is_least = oom_event.most_tokens is not None and (self._rates or best.tokens <= self._longest)
                if is_least or not is_out_of_memory(error):
                    raise
            else:
                return
            # Outside of the `except` block, because the error's frames keep tensors in memory.
            self.oom_history.add_oom(oom_event)
            best = self._best()

    def _oom_event(self, split: MicroBatchPlan, tokens: int) -> OomEvent:
        """Return the OOM event of a micro-batch of `tokens` under the plan `split`."""
        other, available = self._other_bytes, self._available_bytes
        if self._rates is None or split == self._least:
            return OomEvent(other, max(tokens // 2, 1), None, available)
        # Halves the plan's tokens instead of `tokens`: a single row that doesn't fit says nothing about what would.
        smaller = memory_bytes(self._sizes, replace(split, tokens=split.tokens // 2), other)
        return OomEvent(other, None, max(smaller, self._least_bytes), available)

    def _move(self, best: MicroBatchPlan) -> None:
        self._keep_dense(0)
        self.buffers = self.buffers.replaced(best)
        self._keep_dense(best.dense_layers)
        self.plan = best

    def _is_to_move(self, best: MicroBatchPlan) -> bool:
        have = self.plan
        if self._longest > self.buffers.tokens:
            return True
        if self._rates is None:
            return False
        if self.predicted_bytes > self._usable_bytes:
            return True
        speeds = [seconds_per_token(self._sizes, self._rates, split) for split in (have, best)]
        return speeds[0] > speeds[1] * _WORTH_MOVING

    def _keep_dense(self, layers: int) -> None:
        """Keep the weights of the first `layers` layers dequantised, and those of the others in 4 bits.

        Does nothing for a base that isn't quantised, or whose weights `freeze` has kept dequantised.
        """
        if not self._sizes.is_quantized:
            return
        for index, layer in enumerate(self._frozen.layers):
            if index < layers:
                layer.keep_dense()
            else:
                layer.drop_dense()

    def _best(self) -> MicroBatchPlan:
        if self._rates is None:
            most = self.oom_history.most_tokens(self._other_bytes, self._machine.micro_batch_tokens, None)
            return MicroBatchPlan(max(most, self._longest), (ActivationPolicy.SAVE_ALL,) * self._sizes.layers)
        best = self._planned(self._rates)
        if best is None:
            raise torch.OutOfMemoryError(
                f"a row of {self._longest} tokens doesn't fit into {self._usable_bytes / 2**30:.1f} GiB beside "
                f"{len(self._footprints)} adapters"
            )
        return best

    def _planned(self, rates: DeviceRates) -> MicroBatchPlan | None:
        if self.capture.is_possible:
            best = self._planned_for_capture(rates)
            if best is not None:
                return best
        wanted = sum(footprint.step_tokens for footprint in self._footprints.values()) * _LONG_STEP
        most = min(MOST_TOKENS, int(wanted)) if self._footprints else MOST_TOKENS
        return plan(self._sizes, rates, self._other_bytes, self._usable_bytes, self._longest, most)

    def _planned_for_capture(self, rates: DeviceRates) -> MicroBatchPlan | None:
        """Return a plan that leaves room for captured passes; None: there is none, and nothing is captured any more.

        It's the same for any number of trials, because another one would free the memory that captured passes use.
        """
        usable = self._usable_bytes - captured_bytes(self._sizes)
        best = plan(self._sizes, rates, self._other_bytes, usable, self._longest, CAPTURED_TOKENS)
        self.capture.is_possible = best is not None
        return best

    @property
    def _least(self) -> MicroBatchPlan:
        """Plan that needs the least memory: one row at once, with everything recomputed."""
        return MicroBatchPlan(self._longest, (ActivationPolicy.RECOMPUTE_ALL,) * self._sizes.layers)

    @property
    def _least_bytes(self) -> int:
        return memory_bytes(self._sizes, self._least, self._other_bytes)

    @property
    def _usable_bytes(self) -> int:
        """Bytes that a plan may count on, after the OOM events so far."""
        allowed, available = self._allowed_bytes, self._available_bytes
        return self.oom_history.usable_bytes(self._other_bytes, allowed, self._least_bytes, available)

    @property
    def _longest(self) -> int:
        return max((footprint.longest_row for footprint in self._footprints.values()), default=1)

    @property
    def _other_bytes(self) -> int:
        return self._base_bytes + sum(footprint.adapter_bytes for footprint in self._footprints.values())

    @property
    def _allowed_bytes(self) -> int:
        gib = self._machine.gpu_memory_gib
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return int(total * MOST_OF_GPU if gib is None else gib * 2**30)


def footprint_of(
    hyperparameters: Hyperparameters, data: TrialData, frozen: FrozenDecoder, ranks: int
) -> TrialFootprint:
    """Return the footprint of a trial of which nothing exists yet; `ranks` processes share each optimizer step."""
    parameters = parameter_count(frozen.targets, hyperparameters)
    return TrialFootprint(
        adapter_bytes(parameters, hyperparameters, frozen.dtype.itemsize),
        max(data.train.longest, data.eval.longest),
        hyperparameters.effective_batch * data.train.epoch.row_tokens / ranks,
    )


def available_bytes() -> int | None:
    """Return the bytes of GPU memory that are free or that this process has reserved; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def device_rates(device: torch.device) -> DeviceRates | None:
    """Return the measured rates of the GPU, or an RTX 4090's if memory is too short to measure; None for a CPU."""
    if device.type != "cuda":
        return None
    try:
        return measured_rates()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return _SOME_RATES


def measured_rates() -> DeviceRates:
    """Measure this GPU's rates in a few milliseconds, by a large matrix product and a copy."""
    matrix = torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda")
    multiplying = _seconds(lambda: matrix @ matrix)
    buffer = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    copying = _seconds(buffer.clone)
    return DeviceRates(2 * 4096**3 / multiplying, 2 * 2**28 / copying)


def _seconds(work: Callable[[], object]) -> float:
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(5):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / 5
