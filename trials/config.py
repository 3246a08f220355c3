"""What one trial is: frozen, validated, and complete enough to run it again.

`Hyperparameters` is what a search may vary. Everything else (model, data, evaluation) is the same for all trials of
a search, so that their losses can be compared. How an effective batch is split into micro-batches is in `Machine`:
it changes neither the gradient nor the comparison, so it's neither searched nor part of what identifies a trial.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scheduler = Literal["cosine", "linear", "constant", "constant_with_warmup"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]
DataFormat = Literal["nli_cot"]


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Hyperparameters(Settings):
    """What a search may vary. Exactly one of `epochs` and `train_tokens` gives the length of a full trial."""

    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="peak learning rate of the adapter's A matrices")
    lora_rank: int = Field(default=16, ge=1, le=1024, description="inner dimension of the adapter")
    lora_alpha: float = Field(default=32, gt=0, description="the adapter's output is scaled by alpha / rank")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="probability")
    target_modules: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj"), description="names of the linear layers that get an adapter"
    )
    effective_batch: int = Field(default=16, ge=1, description="rows per optimizer step")
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1, description="share of all steps")
    scheduler: Scheduler = Field(default="cosine", description="shape of the learning rate after warm-up")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="decoupled, per unit of learning rate")
    optimizer: Optimizer = Field(default="adamw_torch", description="its name in transformers")
    max_grad_norm: float = Field(default=1.0, gt=0, description="L2 norm over all adapter gradients")
    neftune_noise_alpha: float = Field(default=0.0, ge=0, description="NEFTune noise (arXiv 2310.05914); 0 is off")
    use_rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    use_dora: bool = Field(default=False, description="weight-decomposed adapter (arXiv 2402.09353)")
    loraplus_ratio: float = Field(default=1.0, ge=1, le=1000, description="LoRA+: rate of B over rate of A; 1 is off")
    epochs: float | None = Field(default=None, gt=0, description="passes over the training rows")
    train_tokens: int | None = Field(default=None, ge=1, description="unpadded tokens of a full trial")

    @model_validator(mode="after")
    def _one_length(self) -> Hyperparameters:
        if (self.epochs is None) == (self.train_tokens is None):
            raise ValueError("give exactly one of epochs and train_tokens, and set the other to null")
        return self


class ModelSettings(Settings):
    """The frozen base model."""

    name: str = Field(description="folder, or name on the model hub")
    revision: str | None = Field(default=None, description="commit or tag on the hub; None for the newest")
    quantization: Literal["nf4", "none"] = Field(default="nf4", description="nf4: 4-bit with double quantisation")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )


class DataSettings(Settings):
    """The rows that all trials train on and are judged by."""

    format: DataFormat = Field(default="nli_cot", description="how a row becomes a prompt and a completion")
    train: str = Field(description="JSON Lines file")
    eval: str = Field(description="JSON Lines file; the search is judged on it")
    test: str | None = Field(default=None, description="JSON Lines file that only the finished search looks at")
    eval_rows: int | None = Field(default=None, ge=2, description="at most so many rows of eval, from its top")
    test_rows: int | None = Field(default=None, ge=2, description="at most so many rows of test, from its top")
    max_length_tokens: int = Field(default=2048, ge=8, description="of a whole row: prompt, completion, BOS and EOS")
    too_long: Literal["fail", "drop"] = Field(default="fail", description="what to do with longer rows; never cut")


class EvaluationSettings(Settings):
    """When a trial is evaluated, and when that ends it."""

    evaluations: int = Field(default=9, ge=1, description="of a full trial, equally spaced in tokens")
    patience: int = Field(default=3, ge=1, description="evaluations in a row without improvement that end a trial")
    min_improvement: float = Field(default=0.0, ge=0, description="nats per token that count as improvement")
    divergence_factor: float = Field(default=2.0, gt=1, description="ends a trial above so many times the base's loss")
    batch_rows: int = Field(default=16, ge=1, description="rows evaluated at once; doesn't change the loss")


class Machine(Settings):
    """How this machine runs a trial. Never searched, never compared."""

    micro_batch_tokens: int = Field(default=4096, ge=1, description="padded tokens of one forward pass, about")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")
    cpu_threads: int | None = Field(default=None, ge=1, description="torch threads of one trial on a CPU")


class TrialConfig(Settings):
    """Everything that one trial needs to run."""

    model: ModelSettings
    data: DataSettings
    hyperparameters: Hyperparameters
    evaluation: EvaluationSettings = EvaluationSettings()
    machine: Machine = Machine()
    seed: int = Field(default=0, ge=0, description="of adapter initialisation, data order and dropout")
    base_eval_loss: float | None = Field(default=None, description="of the untrained base, where it's known already")
