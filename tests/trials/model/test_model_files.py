"""Files of models that are not what their names say: each is told from the others by its first bytes."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from search_spaces.schema import Recipe
from trials.config import ModelSettings
from trials.errors import ModelError
from trials.model.loading import check_base, load_base, load_tokenizer
from trials.model.model_files import check_model_files, stored_tensors, weight_files

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2761832\n"


@pytest.fixture
def model(small_recipe: Recipe, tmp_path: Path) -> Path:
    """The demo's base model, to be damaged."""
    return Path(shutil.copytree(small_recipe.model.name, tmp_path / "model"))


def _sharded(model: Path) -> dict[str, str]:
    """The same weights in two files with an index; gives what the index says."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: weights[name] for name in held}, model / part, metadata={"format": "pt"})
    places = {name: part for part, held in parts.items() for name in held}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def _pickled(model: Path) -> Path:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model / "pytorch_model.bin"


@pytest.mark.parametrize("arrange", [str, _sharded, _pickled], ids=["one file", "sharded", "pickled"])
def test_whole_models_pass(model: Path, arrange: Callable[[Path], object]) -> None:
    arrange(model)
    check_model_files(model)
    check_base(ModelSettings(name=str(model)))


def test_what_a_header_says_is_what_is_stored(model: Path) -> None:
    stored = stored_tensors(model / "model.safetensors")
    loaded = load_file(model / "model.safetensors")
    assert {name: each.shape for name, each in stored.items()} == {n: tuple(v.shape) for n, v in loaded.items()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (POINTER, r"is no {kind} but a Git LFS pointer to one: .* Run `git lfs install`, then `git lfs pull` in it\."),
        (b"", r"is no {kind}: it's empty\. Get it again"),
        (b"<!DOCTYPE html><html><body>429</body></html>", r"is no {kind}: it's a web page\. Get it again"),
        (b"\n <HTML>", r"is no {kind}: it's a web page\."),
        (b"garbage" * 100, r"is no {kind}: "),
        (b"{", r"is no {kind}: "),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin"])
def test_something_else_under_a_files_name(model: Path, name: str, content: bytes, says: str) -> None:
    if name == "pytorch_model.bin":
        _pickled(model)
    (model / name).write_bytes(content)
    kind = {".safetensors": "safetensors file", ".json": "JSON file", ".bin": "file of torch's"}[Path(name).suffix]
    with pytest.raises(ModelError, match=rf"{name} {says.format(kind=kind)}"):
        check_model_files(model)
    load = load_tokenizer if name == "tokenizer.json" else load_base
    with pytest.raises(ModelError, match=name):
        load(ModelSettings(name=str(model)))


@pytest.mark.parametrize("left", [4, 500, 40_000, 2_000_000])
def test_a_file_that_was_cut_off_says_what_it_lacks(model: Path, left: int) -> None:
    file = model / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:left])
    says = rf"of the {size:,} bytes" if left > 10_000 else "not even a whole header" if left > 8 else "cut off"
    with pytest.raises(ModelError, match=rf"model\.safetensors .*{says}"):
        check_model_files(model)


def test_a_pickled_file_that_was_cut_off(model: Path) -> None:
    file = _pickled(model)
    assert zipfile.is_zipfile(file)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(ModelError, match=r"pytorch_model\.bin was cut off: it has 100,000 bytes, and no end"):
        check_model_files(model)


def test_a_shard_that_is_missing_or_damaged_is_named(model: Path) -> None:
    _sharded(model)
    assert [file.name for file in weight_files(model)] == ["model-1.safetensors", "model-2.safetensors"]
    (model / "model-2.safetensors").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"model-2\.safetensors is no safetensors file but a Git LFS pointer"):
        check_base(ModelSettings(name=str(model)))
    (model / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-2\.safetensors is missing, which the index beside it names"):
        check_base(ModelSettings(name=str(model)))


def test_a_folder_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in .*: there is no model\.safetensors and no "):
        check_base(ModelSettings(name=str(model)))


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (lambda name: name.replace("model.layers", "model.language_model.layers"), "lack 54 that its config"),
        (lambda name: name.replace("model.norm", "model.last_norm"), r"lack 1 that .* such as model\.norm\.weight"),
    ],
)
def test_weights_under_other_names_are_not_replaced_by_random_ones(
    model: Path, rename: Callable[[str], str], says: str
) -> None:
    file = model / "model.safetensors"
    save_file({rename(name): value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=says):
        check_base(ModelSettings(name=str(model)))


def test_what_only_loading_shows_is_said_as_well(model: Path) -> None:
    """Of other architectures, whose names aren't known beforehand, and of pickled files."""
    weights = torch.load(_pickled(model), weights_only=True)
    weights["model.last_norm.weight"] = weights.pop("model.norm.weight")
    torch.save(weights, model / "pytorch_model.bin")
    check_base(ModelSettings(name=str(model)))
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, such as model\.norm\.weight"):
        load_base(ModelSettings(name=str(model)))


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("vocab_size", 1540, r"model\.embed_tokens\.weight is 1536 x 128, and by the config it would be 1540 x 128"),
        ("intermediate_size", 64, r"model\.layers\.0\.mlp\.gate_proj\.weight is \d+ x 128, and by .* be 64 x 128"),
        ("hidden_size", 256, r"model\.embed_tokens\.weight is 1536 x 128, and by the config it would be 1536 x 256"),
    ],
)
def test_weights_of_other_shapes_than_the_config_says(model: Path, setting: str, value: int, says: str) -> None:
    """In 4 bits, transformers (5.23) takes notice of none but the embedding's."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(ModelError, match=says):
        load_base(ModelSettings(name=str(model)))


def test_other_shapes_are_seen_as_they_are_loaded_too(model: Path) -> None:
    _pickled(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"have other shapes than its config\.json says"):
        load_base(ModelSettings(name=str(model), quantization="none"))


def test_a_checkpoint_that_is_saved_in_4_bits_passes(model: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    load_base(small_recipe.model).save_pretrained(tmp_path / "saved")
    check_base(ModelSettings(name=str(tmp_path / "saved")))
