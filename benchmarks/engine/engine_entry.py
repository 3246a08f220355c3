"""Our engine's entries of `benchmarks.engine.throughput`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.engine.jobs import Job, Measured, Window
from benchmarks.engine.workload import read_rows

_FURTHER_STEPS = 8


def engine_entry(job: Job) -> Measured:
    """Measure our engine with `job.engine.trials` trials on rows of `job.rows`; the trials take steps until it ends."""
    from trials.config import Machine, ModelSettings
    from trials.engine.model.frozen_base import freeze
    from trials.engine.runtime.step_loop import StepLoop
    from trials.model.loading import compute_dtype, load_base

    assert job.engine is not None
    settings = ModelSettings(name=str(job.folder / "nf4"))
    machine = Machine(gpu_memory_gib=min(22.5, job.memory_gib), engine="shared")
    loop = StepLoop(freeze(load_base(settings), compute_dtype(settings)), machine)
    # Micro-batches differ in size, and matrix products load a kernel for each new size.
    window = Window(job, warm_up_steps=3 * job.engine.trials + _FURTHER_STEPS)
    rows = _tokenized(job)
    trainers = [_trainer(job, loop, number, rows) for number in range(job.engine.trials)]

    def is_over(_step: int, _tokens: int) -> bool:
        """Return whether all is measured, after any trial's optimizer step; tokens of unfinished steps count too."""
        return window.step_ended(sum(trainer.tokens_served for trainer in trainers))

    futures = [loop.train(trainer, is_over) for trainer in trainers]
    for future in futures:
        future.result()
    loop.close()
    return window.result()


def _trainer(job: Job, loop: Any, number: int, rows: Sequence[Any]) -> Any:
    from trials.config import DataSettings, Hyperparameters, ModelSettings, TrialConfig
    from trials.engine.lora.adapter import Adapter, parameter_count
    from trials.engine.memory.oom_history import TrialFootprint
    from trials.engine.optim.flat import FlatOptimizer
    from trials.engine.runtime.adapter_trainer import AdapterTrainer
    from trials.model.memory_plan import adapter_bytes
    from trials.schedule import TrialLength
    from trials.training.row_order import RowOrder

    assert job.engine is not None
    work = job.engine
    hp = Hyperparameters(
        lora_rank=work.ranks[number % len(work.ranks)],
        target_modules=work.targets[number % len(work.targets)],
        lora_dropout=job.dropout,
        effective_batch=work.effective_batch,
        optimizer="paged_adamw_8bit",
        learning_rate=2e-4,
        epochs=1.0,
    )
    config = TrialConfig(
        model=ModelSettings(name=str(job.folder)), data=DataSettings(train="", eval=""), hyperparameters=hp, seed=number
    )
    frozen = loop.frozen
    parameters = parameter_count(frozen.targets, hp)
    lengths = [len(row.input_ids) for row in rows]
    step_tokens = work.effective_batch * sum(lengths) / len(lengths)
    loop.admit(number, TrialFootprint(adapter_bytes(parameters, hp, frozen.dtype.itemsize), max(lengths), step_tokens))
    adapter = Adapter(frozen.targets, hp, number, frozen.final_norm)
    flat_optimizer = FlatOptimizer(adapter, config, TrialLength(10**6, 10**9))
    order = RowOrder(len(rows), work.effective_batch, number)
    return AdapterTrainer(
        adapter, flat_optimizer, hp.max_grad_norm, lambda step: [rows[index] for index in order.step(step)], 0
    )


def _tokenized(job: Job) -> list[Any]:
    """Return the job's rows as tokens; the second half of each row is learned."""
    from trials.data.tokenization import IGNORED, TokenizedRow

    rows = []
    for number, ids in enumerate(read_rows(job.folder / f"{job.rows}.jsonl")):
        prompt = len(ids) // 2
        rows.append(TokenizedRow(str(number), ids, [IGNORED] * prompt + ids[prompt:]))
    return rows
