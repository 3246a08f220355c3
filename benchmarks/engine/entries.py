"""Entries of `benchmarks.engine.throughput`, one in each process: the machine's rates, TRL, Unsloth or our engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engine.engine_entry import engine_entry
from benchmarks.engine.jobs import Job, Kind, Measured, Window, device_here, limit_memory
from benchmarks.engine.roofline import measure_rates
from benchmarks.engine.workload import MISTRAL_7B, PAD_ID, TINY, prepare, read_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from torch import Tensor
    from trl import SFTConfig


def run_job(job: Job) -> dict[str, Any]:
    """Run a job in this process; return its part of the JSON. Raises whatever the entry raises."""
    device = device_here()
    if job.kind == "prepare":
        prepare(job.folder, TINY if job.tiny else MISTRAL_7B, device)
        return {}
    if job.kind == "machine":
        small = job.tiny or device == "cpu"
        return asdict(measure_rates(device, *((256, 2**22, 0.1) if small else (8192, 2**31, 2.0))))
    limit_memory(job.memory_gib)
    entries: dict[Kind, Callable[[Job], Measured]] = {
        "trl": trl_entry,
        "unsloth": unsloth_entry,
        "engine": engine_entry,
    }
    return asdict(entries[job.kind](job))


def trl_entry(job: Job) -> Measured:
    """Measure TRL's trainer with gradient checkpointing, NF4 base and LoRA of rank 16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTTrainer

    device = device_here()
    window = Window(job, warm_up_steps=2)

    class Counting(SFTTrainer):  # type: ignore[misc]
        """Trainer that counts real tokens on the device, so that counting doesn't wait for it."""

        real_tokens: Tensor | int = 0

        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self.real_tokens = self.real_tokens + inputs["attention_mask"].sum()
            return super().training_step(model, inputs, *args, **kwargs)

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Callback that ends the training when everything is measured."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = window.step_ended(trainer.real_tokens)
            return control

    on_gpu = device == "cuda"
    model = AutoModelForCausalLM.from_pretrained(
        job.folder / "nf4",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        device_map={"": device},
        trust_remote_code=False,
    )
    model.config.use_cache = False
    trainer = Counting(
        model=model,
        args=_trl_arguments(job, on_gpu=on_gpu),
        train_dataset=as_dataset(job.folder / f"{job.rows}.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(job.folder / "nf4", trust_remote_code=False),
        peft_config=_adapter(job),
        callbacks=[Clock()],
    )
    trainer.train()
    return window.result()


def _trl_arguments(job: Job, *, on_gpu: bool) -> SFTConfig:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(job.folder / "trl"),
        per_device_train_batch_size=job.micro_rows,
        gradient_accumulation_steps=job.accumulation,
        max_steps=100_000,
        learning_rate=2e-4,
        optim="paged_adamw_8bit" if on_gpu else "adamw_torch",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=True,
        use_liger_kernel=job.liger and on_gpu,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",
        logging_steps=100_000,
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def _adapter(job: Job) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=job.dropout,
        target_modules=list(job.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def unsloth_entry(job: Job) -> Measured:
    """Measure Unsloth with its own checkpointing, dropout 0 (else it leaves its fast path) and fused AdamW."""
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # has to come before torch

    import torch  # isort: skip

    window = Window(job, warm_up_steps=4)
    longest = 2048 if job.rows == "long" else 640
    model, _ = FastLanguageModel.from_pretrained(
        str(job.folder / "bf16"),
        max_seq_length=longest,
        dtype=torch.bfloat16,
        load_in_4bit=True,
        trust_remote_code=False,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=job.dropout,
        target_modules=list(job.targets),
        bias="none",
        use_gradient_checkpointing="unsloth",
    )
    FastLanguageModel.for_training(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, fused=True)
    tokens = 0
    rows = cycle(read_rows(job.folder / f"{job.rows}.jsonl"))
    is_over = False
    while not is_over:
        for _ in range(job.accumulation):
            micro_batch = list(islice(rows, job.micro_rows))
            batch = {name: tensor.to("cuda") for name, tensor in padded(micro_batch).items()}
            (model(**batch).loss / job.accumulation).backward()
            tokens += sum(map(len, micro_batch))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        is_over = window.step_ended(tokens)
    return window.result()


def as_dataset(path: Path, count: int | None = None) -> Dataset:
    """Return the first `count` rows of a file, tokenised, as TRL takes them; None: all rows."""
    from datasets import Dataset

    return Dataset.from_list([{"input_ids": row, "labels": labels_of(row)} for row in read_rows(path, count)])


def labels_of(row: list[int]) -> list[int]:
    """Return the labels of a row, of which the second half is learned."""
    prompt = len(row) // 2
    return [-100] * prompt + row[prompt:]


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and labels, each `[rows, longest row]`, padded at the end."""
    import torch

    longest = max(map(len, rows))

    def tensor(values: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in values])

    return {
        "input_ids": tensor(rows, PAD_ID),
        "attention_mask": tensor([[1] * len(row) for row in rows], 0),
        "labels": tensor([labels_of(row) for row in rows], -100),
    }
