"""Configuration of one trial: frozen, validated, and complete enough to run it again.

A search may vary the `Hyperparameters`. Everything else (model, data, evaluation) is the same for all trials of a
search, so that their losses can be compared. The split of an effective batch into micro-batches is in `Machine`. It
changes neither the gradient nor the comparison, so it's neither searched nor part of a trial's identity.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Scheduler = Literal["cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
DataFormat = Literal["nli_cot", "nli", "messages", "instruction", "prompt_completion", "title_body", "text"]
TooLong = Literal["fail", "drop", "shorten"]
LENGTHS = ("epochs", "train_tokens", "rows_seen")
"""Hyperparameters of which one gives a full trial's length."""
ALL_LINEAR = "all-linear"
"""PEFT's word for all linear layers but the head, in `target_modules`; a trial has their names in its place."""
Share = int | float
"""A whole number of rows, or (below 1) a fraction of them."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Hyperparameters(Settings):
    """Values a search may vary. Exactly one of `epochs`, `train_tokens` and `rows_seen` is a full trial's length."""

    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="peak learning rate of the adapter's A matrices")
    lora_rank: int = Field(default=16, ge=1, le=1024, description="inner dimension of the adapter")
    lora_alpha: float = Field(default=32, gt=0, description="the adapter's output is scaled by alpha / rank")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="probability")
    target_modules: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj"),
        description="names of the linear layers that get an adapter; all-linear: every one but the head",
    )
    effective_batch: int = Field(default=16, ge=1, description="rows per optimizer step")
    warmup_fraction: float = Field(
        default=0.03,
        ge=0,
        lt=1,
        description="share of all steps; of inverse_sqrt: of one epoch's, at most inverse_sqrt_steps",
    )
    scheduler: Scheduler = Field(
        default="cosine",
        description="shape of the learning rate after warm-up; inverse_sqrt: the peak times the root of "
        "inverse_sqrt_steps / (inverse_sqrt_steps + step), whatever the length",
    )
    inverse_sqrt_steps: int = Field(
        default=100,
        ge=1,
        description="optimizer steps in which the rate of inverse_sqrt falls to 71 % of its peak; others ignore it",
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="decoupled, per unit of learning rate")
    optimizer: Optimizer = Field(default="adamw_torch", description="its name in transformers")
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="L2 norm over all adapter gradients; null: gradients are not clipped"
    )
    neftune_noise_alpha: float = Field(default=0.0, ge=0, description="NEFTune noise (arXiv 2310.05914); 0 is off")
    use_rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    use_dora: bool = Field(default=False, description="weight-decomposed adapter (arXiv 2402.09353)")
    loraplus_ratio: float = Field(default=1.0, ge=1, le=1000, description="LoRA+: rate of B over rate of A; 1 is off")
    adapter_average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="the average of the adapter over about this last share of the trial is what is evaluated and kept; "
        "0 is off",
    )
    epochs: float | None = Field(default=None, gt=0, description="passes over the training rows")
    train_tokens: int | None = Field(default=None, ge=1, description="unpadded tokens of a full trial")
    rows_seen: int | None = Field(default=None, ge=1, description="rows of a full trial, repeated ones counted again")

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if value == ALL_LINEAR:
            return (ALL_LINEAR,)
        if isinstance(value, str):
            raise ValueError(f"give a list of names, such as [q_proj, v_proj], or {ALL_LINEAR}")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Hyperparameters:
        if sum(length is not None for length in (self.epochs, self.train_tokens, self.rows_seen)) != 1:
            raise ValueError("give exactly one of epochs, train_tokens and rows_seen, and set the others to null")
        return self

    @property
    def is_open_ended(self) -> bool:
        """Whether no step depends on the trial's length, so that a trial can be extended."""
        return self.scheduler == "inverse_sqrt"


class ModelSettings(Settings):
    """The frozen base model."""

    name: str = Field(description="folder, or name on the model hub")
    revision: str | None = Field(default=None, description="commit or tag on the hub; null for the newest")
    chat_template: str | None = Field(
        default=None, description="mistral, zephyr, a Jinja file, or a name in the tokenizer; null: the tokenizer's own"
    )
    quantization: Literal["nf4", "none"] = Field(default="nf4", description="nf4: 4-bit with double quantisation")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )


class DataSettings(Settings):
    """The rows that all trials train on and are evaluated on.

    A source is a local file (.jsonl, .json, .csv, .parquet) or a data set on the hub, as
    `owner/name[@revision][#config][:split or file]`; either may end in a slice of rows such as `[:800]`.
    """

    format: DataFormat = Field(default="nli_cot", description="how a row becomes a conversation")
    train: str = Field(description="source of the rows that are trained on")
    eval: str = Field(description="source of the rows that the search is judged on")
    test: str | None = Field(default=None, description="source of rows that only the finished search looks at")
    train_rows: Share | None = Field(default=None, description="at most so many rows, or this fraction; null: all")
    eval_rows: Share | None = Field(default=None, description="the same for eval")
    test_rows: Share | None = Field(default=None, description="the same for test")
    subset_seed: int | None = Field(default=None, ge=0, description="of a random subset; null: rows from the top")
    select: Literal["all", "correct", "reflected"] = Field(
        default="all", description="thoughts to train on: right at once, mended by reflection, or both"
    )
    max_length_tokens: int = Field(default=2048, ge=8, description="of a whole row: prompt, completion, BOS and EOS")
    too_long: TooLong = Field(
        default="fail", description="longer rows; shorten: later turns go, then the prompt's end, never an answer"
    )
    bad_rows: Literal["fail", "drop"] = Field(default="fail", description="rows that don't fit the format")
    overlap: Literal["fail", "drop"] = Field(default="fail", description="eval and test rows that are trained on")

    @field_validator("train_rows", "eval_rows", "test_rows", mode="before")
    @classmethod
    def _whole_or_fraction(cls, value: Any) -> Any:
        is_count = type(value) is int and value >= 1
        is_fraction = type(value) is float and 0 < value < 1
        if value is None or is_count or is_fraction:
            return value
        raise ValueError("give a whole number of rows, or a fraction between 0 and 1")


class EvaluationSettings(Settings):
    """Evaluation of a trial, and the rules by which an evaluation ends it."""

    evaluations: int = Field(default=9, ge=1, description="of a full trial, equally spaced in tokens")
    every_rows: int | None = Field(
        default=None, ge=1, description="training rows from one evaluation to the next, in place of `evaluations`"
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="evaluations in a row without improvement that end a trial, where the learning rate falls to an "
        "end in its second half only; null: none do",
    )
    min_improvement: float = Field(default=0.0, ge=0, description="nats per token that count as improvement")
    divergence_factor: float = Field(default=2.0, gt=1, description="ends a trial above so many times the base's loss")
    batch_rows: int = Field(default=16, ge=1, description="rows evaluated at once; doesn't change the loss")
    score_rows: int | None = Field(
        default=None,
        ge=2,
        description="first eval rows, answered and scored at the comparison points and at the end; null: none",
    )


class Machine(Settings):
    """Execution of a trial on this machine. Never searched, never compared."""

    engine: Literal["shared", "trl"] = Field(
        default="shared",
        description="shared: our engine, many trials on one base; trl: TRL's trainer, the reference",
    )
    micro_batch_tokens: int = Field(
        default=4096, ge=1, description="tokens of one forward pass, about; the engine plans it by itself on a GPU"
    )
    micro_batch_rows: int | None = Field(default=None, ge=1, description="at most so many rows of one forward pass")
    gpu_memory_gib: float | None = Field(
        default=None, gt=0, description="GPU memory that the engine may reserve; null: 94 % of the GPU's"
    )
    cuda_graphs: bool = Field(
        default=True, description="the engine trains models of up to 2 billion weights by CUDA graphs, on a GPU"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations to save memory; the engine plans it"
    )
    fsdp: bool = Field(
        default=False,
        description="the processes of one trial share the base (FSDP, under TRL); alone it changes nothing",
    )
    cpu_threads: int | None = Field(default=None, ge=1, description="torch threads of one trial on a CPU")
    checkpoint_every_rows: int | None = Field(
        default=None, ge=1, description="training rows from one checkpoint to the next; null: none are written"
    )
    checkpoint_evaluations: bool = Field(
        default=False, description="also one at every evaluation, before anybody is asked whether the trial goes on"
    )
    keep_checkpoints: int | None = Field(default=None, ge=1, description="the newest so many; null: all")
    step_limit_seconds: float = Field(
        default=600.0,
        gt=0,
        description="longest time without any progress; then its process is ended and started again",
    )


class TrackingSettings(Settings):
    """Presentation of trials in Weights & Biases, which needs WANDB_API_KEY or WANDB_MODE=offline."""

    wandb: bool = Field(default=True, description="log there, if the environment has what it needs")
    project: str = Field(default="qlora-search", description="a WANDB_PROJECT in the environment goes before it")
    run_name: str | None = Field(default=None, description="null: search and trial")
    run_id: str | None = Field(default=None, description="of a run to go on with")


class TrialConfig(Settings):
    """Everything that one trial needs to run."""

    model: ModelSettings
    data: DataSettings
    hyperparameters: Hyperparameters
    evaluation: EvaluationSettings = EvaluationSettings()
    machine: Machine = Machine()
    tracking: TrackingSettings = TrackingSettings()
    seed: int = Field(default=0, ge=0, description="of adapter initialisation, data order and dropout")
    base_eval_loss: float | None = Field(default=None, description="of the untrained base, where it's known already")
    score_at_tokens: Annotated[tuple[int, ...], Field(strict=False)] = Field(
        default=(), description="tokens seen at which answers are scored, beside the last evaluation"
    )
