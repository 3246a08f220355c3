"""The frozen base model in 4 bits, its tokenizer, and the adapter of one trial."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trials.config import ALL_LINEAR, Hyperparameters, ModelSettings
from trials.data.chat_template import chosen_template
from trials.errors import ModelError, first_line
from trials.model.architecture import ARCHITECTURES, LINEAR_NAMES, model_shape
from trials.model.model_files import check_json_files, check_model_files, check_stored_weights
from trials.model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trials.data.dataset import TrialData


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer, with a padding token. Raises `ModelError` if it can't be loaded."""
    _check_folder(settings.name, "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.name, revision=settings.revision, trust_remote_code=False)
    except Exception as error:  # most errors of the Rust library are plain Exceptions
        raise ModelError(f"can't load the tokenizer of {settings.name!r}: {first_line(error)}. {_REMEDY}.") from error
    known = _known_tokens(settings)
    if tokenizer.pad_token is None or (known is not None and tokenizer.pad_token_id >= known):
        # Padding is masked by position, so sharing the token with EOS never hides an EOS from the loss. A padding token
        # that was added to the tokenizer alone has no row in the model's embedding.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = chosen_template(tokenizer.chat_template, settings)
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def vocabulary(settings: ModelSettings) -> Vocabulary | None:
    """Return the tokens that the base model knows; None if its config doesn't say, or can't be read."""
    known = _known_tokens(settings)
    return None if known is None else Vocabulary(settings.name, known)


def refuse_unknown_tokens(settings: ModelSettings, data: TrialData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` if rows hold a token that the base model doesn't know."""
    known = vocabulary(settings)
    if known is not None:
        splits = {"train": data.train, "eval": data.eval, "test": data.test}
        known.refuse_rows({name: split for name, split in splits.items() if split is not None}, tokenizer)


def _known_tokens(settings: ModelSettings) -> int | None:
    try:
        config = AutoConfig.from_pretrained(settings.name, revision=settings.revision, trust_remote_code=False)
    except (OSError, ValueError):
        return None  # an adapter's folder has none; faults of a model's are reported when it's loaded
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def check_base(settings: ModelSettings) -> None:
    """Raise `ModelError` if a folder's weights are damaged, incomplete, or of another size than its config says.

    Reads only the beginnings of files. A model on the hub is not checked here: its files are checked as they are
    loaded.
    """
    folder = Path(settings.name)
    if not folder.is_dir():
        return
    check_model_files(folder)
    shape = model_shape(settings.name, settings.revision)
    if shape.model_type in ARCHITECTURES:
        check_stored_weights(folder, shape)


def load_base(settings: ModelSettings) -> PreTrainedModel:
    """Load the base model, frozen, onto this process's GPU or the CPU. Raises `ModelError` if it can't be loaded.

    Uses NF4 with double quantisation as in QLoRA (arXiv 2305.14314). A checkpoint saved quantised keeps its own format.
    """
    _check_folder(settings.name, "config.json")
    check_base(settings)
    try:
        arguments = weight_arguments(settings)
        model, found = AutoModelForCausalLM.from_pretrained(
            settings.name, revision=settings.revision, output_loading_info=True, **arguments, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"can't load the base model {settings.name!r}: {first_line(error)}. {_REMEDY}.") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelError(
            f"the weights of the base model {settings.name!r} have other shapes than its config.json says. {_REMEDY}."
        ) from error
    if found["missing_keys"]:  # transformers fills them with random numbers, and warns
        raise ModelError(
            f"the base model {settings.name!r} lacks {len(found['missing_keys'])} of its weights, such as "
            f"{min(found['missing_keys'])}. {_REMEDY}."
        )
    return as_base(model)


def as_base(model: Any) -> PreTrainedModel:
    """Freeze a loaded model and prepare it for adapters."""
    model.requires_grad_(False)
    keep_gradients_on_cpu(model)
    model.config.use_cache = False
    loaded: PreTrainedModel = model
    return loaded


def weight_arguments(settings: ModelSettings) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` loads the base's weights.

    A checkpoint saved in 4 bits must be given no quantisation at all, not even None. Raises OSError or ValueError if
    the base's config can't be read.
    """
    dtype = compute_dtype(settings)
    arguments: dict[str, Any] = {"dtype": dtype, "device_map": device_map()}
    config = AutoConfig.from_pretrained(settings.name, revision=settings.revision, trust_remote_code=False)
    if settings.quantization == "nf4" and getattr(config, "quantization_config", None) is None:
        arguments["quantization_config"] = nf4_config(dtype)
    return arguments


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return settings for 4-bit NormalFloat weights, quantised scales and matrix products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_gradients_on_cpu(model: torch.nn.Module) -> None:
    """Keep bitsandbytes on its kernel with autograd.

    With AVX512-BF16 a `Linear4bit` repacks its weights for inference at the first forward pass in eval mode. After that
    no gradient passes through it (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # no types in bitsandbytes


def attach_adapter(base: PreTrainedModel, hyperparameters: Hyperparameters, revision: str | None = None) -> PeftModel:
    """Attach a fresh LoRA adapter to the base; it changes no output yet, because B is zero.

    `revision` is the base's; the saved adapter asks for it when it is loaded.

    Raises `ModelError` if a target module isn't in the model.
    """
    from peft import get_peft_model

    _refuse_unknown_targets(hyperparameters.target_modules, linear_names(base))
    model = get_peft_model(base, lora_config(hyperparameters), revision=revision)
    keep_gradients_on_cpu(model)
    adapted: PeftModel = model
    return adapted


def lora_config(hyperparameters: Hyperparameters) -> LoraConfig:
    """Return PEFT's settings of a trial's adapter."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=hyperparameters.lora_rank,
        lora_alpha=hyperparameters.lora_alpha,
        lora_dropout=hyperparameters.lora_dropout,
        target_modules=list(hyperparameters.target_modules),
        use_rslora=hyperparameters.use_rslora,
        use_dora=hyperparameters.use_dora,
        bias="none",
    )


def check_targets(settings: ModelSettings, targets: Collection[str]) -> None:
    """Raise `ModelError` if a target module isn't in the model. Reads the model's config, but no weights."""
    named_targets(settings, targets)


def named_targets(settings: ModelSettings, targets: Collection[str]) -> tuple[str, ...]:
    """Return the target modules, each once; `all-linear` becomes the names of all linear layers but the head.

    Raises `ModelError` if one of them isn't in the model. Reads the model's config, but no weights.
    """
    _check_folder(settings.name, "config.json")
    names, head = _linear_layers(settings)
    _refuse_unknown_targets(set(targets) - {ALL_LINEAR}, {*names, *head})
    found = (names if target == ALL_LINEAR else (target,) for target in targets)
    return tuple(dict.fromkeys(name for part in found for name in part))


def _linear_layers(settings: ModelSettings) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the last part of the names of a model's linear layers, without the head's, and of its head's.

    PEFT's `all-linear` leaves the output layer out (peft 0.21).
    """
    if model_shape(settings.name, settings.revision).model_type in ARCHITECTURES:
        head = frozenset({"lm_head"})
        return tuple(name for name in LINEAR_NAMES if name not in head), head  # an empty model takes seconds of imports
    model = empty_model(settings)
    output = model.get_output_embeddings()
    head = frozenset(name.rpartition(".")[2] for name, module in model.named_modules() if module is output)
    return tuple(sorted(linear_names(model) - head)), head


def empty_model(settings: ModelSettings) -> PreTrainedModel:
    """Build the base model's modules without their weights. Raises `ModelError` if its config can't be read."""
    try:
        config = AutoConfig.from_pretrained(settings.name, revision=settings.revision, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read the config of {settings.name!r}: {first_line(error)}. {_REMEDY}.") from error
    return model


def _refuse_unknown_targets(targets: Collection[str], allowed: set[str]) -> None:
    missing = set(targets) - allowed
    if missing:
        raise ModelError(
            f"target_modules {', '.join(sorted(missing))} not in the base model. Allowed: {', '.join(sorted(allowed))}."
        )


def linear_names(model: torch.nn.Module) -> set[str]:
    """Return the last part of the names of all linear layers, such as q_proj."""
    return {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def compute_dtype(settings: ModelSettings) -> torch.dtype:
    """Return the dtype of matrix products."""
    if settings.compute_dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.compute_dtype]


def device_map() -> dict[str, int | str]:
    """Place the whole model on this process's GPU, or on the CPU.

    "auto" would spread it over several GPUs, and hides ranks from DDP.
    """
    return {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}


_REMEDY = "Give a folder with config.json, tokenizer and weights, or a name on the hub that this machine can reach"


def _check_folder(name: str, needed: str) -> None:
    # A name on the hub has one slash at most.
    looks_like_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).is_dir()
    if not looks_like_path:
        return
    if not (Path(name) / needed).is_file():
        raise ModelError(f"no model in {name}: there is no {needed} in it. {_REMEDY}.")
    check_json_files(Path(name))
