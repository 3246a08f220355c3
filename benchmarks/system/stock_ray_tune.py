"""The stock pipeline: Ray Tune with Optuna and ASHA, one process a trial, TRL with Liger on an NF4 base.

python -m benchmarks.system.stock_ray_tune WORK OUT TRIALS

It is what a user would write today, and the stock side of `python -m benchmarks.engine.throughput --search`.

Every trial leaves OUT/<time>.json: when each of its optimizer steps began and ended, in seconds since the epoch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import SFTConfig

STEPS, STEP_ROWS, EVAL_ROWS = 8, 16, 32
EVALUATIONS = 2
RANKS = (8, 16, 32)
LOWEST_RATE, HIGHEST_RATE = 1e-5, 1e-3


def trial(config: dict[str, Any]) -> None:
    """Run one Tune trial, in the process that Tune starts for it."""
    import torch
    from ray import tune
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTTrainer

    from benchmarks.engine.entries import as_dataset
    from benchmarks.engine.jobs import device_here, limit_memory
    from benchmarks.engine.roofline import synchronize

    work, device = Path(config["work"]), device_here()
    on_gpu = device == "cuda"
    limit_memory(23.5)
    begun = time.time()
    steps: list[tuple[float, float]] = []

    def now() -> float:
        synchronize(device)
        return time.time()

    class Marks(TrainerCallback):  # type: ignore[misc]
        """Callback that records every step, and reports every evaluation to Tune."""

        began = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = now()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append((self.began, now()))

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
            # Written before the report: Tune may end the thread there.
            Path(config["out"], f"{begun}.json").write_text(json.dumps(steps), encoding="utf-8")
            tune.report({"eval_loss": metrics["eval_loss"], "step": state.global_step})

    model = AutoModelForCausalLM.from_pretrained(
        work / "nf4",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        device_map={"": device},
        trust_remote_code=False,
    )
    SFTTrainer(
        model=model,
        args=_arguments(config, on_gpu=on_gpu),
        train_dataset=as_dataset(work / "short.jsonl", STEPS * STEP_ROWS),
        eval_dataset=as_dataset(work / "eval.jsonl", EVAL_ROWS),
        processing_class=AutoTokenizer.from_pretrained(work / "nf4", trust_remote_code=False),
        callbacks=[Marks()],
        peft_config=_adapter(config),
    ).train()


def _arguments(config: dict[str, Any], *, on_gpu: bool) -> SFTConfig:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=config["out"],
        per_device_train_batch_size=STEP_ROWS,
        per_device_eval_batch_size=8,
        max_steps=STEPS,
        learning_rate=config["learning_rate"],
        optim="paged_adamw_8bit" if on_gpu else "adamw_torch",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        use_liger_kernel=on_gpu,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="steps",
        eval_steps=STEPS // EVALUATIONS,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )


def _adapter(config: dict[str, Any]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=config["rank"],
        lora_alpha=2 * config["rank"],
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )


def main(argv: Sequence[str]) -> None:
    """Run the search."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    work, out, trials = Path(argv[0]), Path(argv[1]), int(argv[2])
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    resources = {"gpu": 1, "cpu": 4} if gpus else {"cpu": ray.cluster_resources()["CPU"]}
    space = {
        "learning_rate": tune.loguniform(LOWEST_RATE, HIGHEST_RATE),
        "rank": tune.choice(list(RANKS)),
        "work": str(work),
        "out": str(out),
    }
    scheduler = ASHAScheduler(
        metric="eval_loss",
        mode="min",
        time_attr="step",
        max_t=STEPS,
        grace_period=STEPS // EVALUATIONS,
        reduction_factor=3,
    )
    searcher = OptunaSearch(metric="eval_loss", mode="min", seed=0)
    tune.Tuner(
        tune.with_resources(trial, resources),
        param_space=space,
        tune_config=tune.TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=trials),
        run_config=tune.RunConfig(storage_path=str(out / "ray"), verbose=0),
    ).fit()


if __name__ == "__main__":
    main(sys.argv[1:])
