"""Check of a model's or an adapter's files against their names, by headers and first bytes.

Recognised faults: a Git LFS pointer (cloned without git-lfs), a web page saved in a file's place, a file that is empty
or cut off, and a missing shard that an index names. Reads no weights, and needs no torch.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials.errors import ModelError
from trials.model.architecture import ModelShape

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_PACKED = "U8"
"""Dtype of weights saved in 4 bits, two to a byte."""
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library (0.7)."""


@dataclass(frozen=True)
class StoredTensor:
    """Dtype and shape of one tensor in a file of weights."""

    dtype: str
    shape: tuple[int, ...]


def check_model_files(folder: Path) -> None:
    """Raise `ModelError` if a file in a model's folder is not what its name says, or if there are no weights."""
    check_json_files(folder)
    files = weight_files(folder)
    if not files:
        raise ModelError(f"no weights in {folder}: there is no {' and no '.join((*SAFETENSORS, *PICKLED))}. {_REMEDY}")
    for file in files:
        check_weights(file)


def check_stored_weights(folder: Path, shape: ModelShape) -> None:
    """Raise `ModelError` if safetensors files lack weights of a Llama or Mistral model, or hold another model's.

    Transformers (5.23) fills weights that are missing or have other names with random numbers. With NF4 it ignores
    weights of other shapes. Not checked: pickled files, and checkpoints whose quantisation names weights differently
    from bitsandbytes.
    """
    files = weight_files(folder)
    quantization = _read_json(folder / "config.json").get("quantization_config") or {}
    if files[0].suffix != ".safetensors" or quantization.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return
    stored = {name.removeprefix("model."): each for file in files for name, each in stored_tensors(file).items()}
    expected = _expected_shapes(shape)
    missing = [name for name in expected if name not in stored]
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} that its config.json announces, such as model.{missing[0]}; "
            f"there are {len(stored)}, such as {min(stored, default='none')}. {_REMEDY}"
        )
    for name, wanted in expected.items():
        if stored[name].shape != wanted and stored[name].dtype != _PACKED:
            found, announced = (" x ".join(map(str, each)) for each in (stored[name].shape, wanted))
            raise ModelError(
                f"the weights in {folder} are of another model than its config.json: model.{name} is {found}, and by "
                f"the config it would be {announced}. {_REMEDY}"
            )


def _expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a Llama or Mistral model's weights by name, without the prefix `model.`.

    The weights of a bare decoder have no such prefix.
    """
    wide, inner = shape.hidden_size, shape.intermediate_size
    heads, groups = (count * shape.head_size for count in (shape.num_attention_heads, shape.num_key_value_heads))
    layer = {
        "self_attn.q_proj": (heads, wide),
        "self_attn.k_proj": (groups, wide),
        "self_attn.v_proj": (groups, wide),
        "self_attn.o_proj": (wide, heads),
        "mlp.gate_proj": (inner, wide),
        "mlp.up_proj": (inner, wide),
        "mlp.down_proj": (wide, inner),
        "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
    }
    embedding = (shape.vocab_size, wide)
    return {
        "embed_tokens.weight": embedding,
        **{f"layers.{n}.{name}.weight": each for n in range(shape.num_hidden_layers) for name, each in layer.items()},
        "norm.weight": (wide,),
        **({} if shape.tie_word_embeddings else {"lm_head.weight": embedding}),
    }


def check_json_files(folder: Path) -> None:
    """Raise `ModelError` if a JSON file of a model, a tokenizer or an adapter holds no JSON object."""
    for name in _JSON_FILES:
        if (folder / name).is_file():
            _read_json(folder / name)


def weight_files(folder: Path) -> list[Path]:
    """Return the files from which transformers reads the weights; empty if there are none.

    A file that an index names may be missing. Raises `ModelError` if an index is no index.
    """
    for single, index in (SAFETENSORS, PICKLED):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards = _read_json(folder / index).get("weight_map")
            if not isinstance(shards, Mapping) or not shards:
                raise ModelError(f"{folder / index} names no weights. {_REMEDY}")
            return [folder / name for name in sorted(set(map(str, shards.values())))]
    return []


def check_weights(file: Path) -> None:
    """Raise `ModelError` if a file of weights is missing, of another kind, or cut off."""
    if not file.is_file():
        raise ModelError(f"{file} is missing, which the index beside it names. {_REMEDY}")
    if file.suffix == ".safetensors":
        stored_tensors(file)
        return
    beginning = _beginning(file)
    # torch writes a ZIP archive, whose directory is at its end; before version 1.6 it was a bare pickle.
    if beginning.startswith(b"PK") and not zipfile.is_zipfile(file):
        raise ModelError(f"{file} was cut off: it has {file.stat().st_size:,} bytes, and no end. {_REMEDY}")
    if not beginning.startswith((b"PK", b"\x80")):
        raise _not(file, "file of torch's", beginning)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, by name. Raises `ModelError` if it is of another kind or cut off."""
    beginning = _beginning(file)
    header = _header(file, beginning)
    tensors = {name: each for name, each in header.items() if name != "__metadata__"}
    try:
        data_bytes = max((each["data_offsets"][1] for each in tensors.values()), default=0)
        found = {name: StoredTensor(each["dtype"], tuple(each["shape"])) for name, each in tensors.items()}
    except (KeyError, TypeError, IndexError) as error:
        raise _not(file, "safetensors file", beginning) from error
    expected = _LENGTH_BYTES + _header_bytes(beginning) + data_bytes
    if file.stat().st_size < expected:
        raise ModelError(
            f"{file} was cut off: it has {file.stat().st_size:,} of the {expected:,} bytes that its header announces. "
            f"{_REMEDY}"
        )
    return found


def _header(file: Path, beginning: bytes) -> dict[str, Any]:
    length = _header_bytes(beginning)
    if not beginning[_LENGTH_BYTES:].startswith(b"{") or length > _MOST_HEADER_BYTES:
        raise _not(file, "safetensors file", beginning)
    with file.open("rb") as opened:
        opened.seek(_LENGTH_BYTES)
        text = opened.read(length)
    if len(text) < length:
        raise ModelError(
            f"{file} was cut off: it has {file.stat().st_size:,} bytes, not even a whole header. {_REMEDY}"
        )
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise _not(file, "safetensors file", beginning) from error
    return header


def _header_bytes(beginning: bytes) -> int:
    if len(beginning) < _LENGTH_BYTES:
        return _MOST_HEADER_BYTES + 1
    length: int = struct.unpack("<Q", beginning[:_LENGTH_BYTES])[0]
    return length


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _not(file, "JSON file", _beginning(file), str(error)) from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object. {_REMEDY}")
    return content


def _beginning(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(200)
    except OSError as error:
        raise ModelError(f"can't read {file}: {error.strerror}. Check its permissions.") from error


def _not(file: Path, kind: str, beginning: bytes, reason: str = "") -> ModelError:
    """Return the error for a file that isn't what its name says, with what it is instead."""
    if beginning.startswith(_POINTER):
        return ModelError(
            f"{file} is no {kind} but a Git LFS pointer to one: the folder was cloned without git-lfs. Run `git lfs "
            "install`, then `git lfs pull` in it."
        )
    if not beginning:
        what = "it's empty"
    elif beginning.lstrip().lower().startswith((b"<!doctype", b"<html")):
        what = "it's a web page"
    else:
        what = reason.rstrip(".") or "it begins otherwise, or was cut off"
    return ModelError(f"{file} is no {kind}: {what}. {_REMEDY}")


_REMEDY = "Get it again from where it comes from."
