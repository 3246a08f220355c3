"""Base models by what their configs say, and what a search does without transformers once it knows that."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from tests.support.cli import ROOT
from tests.support.fake_search import make_run
from trials.config import ModelSettings
from trials.errors import ModelError
from trials.model.architecture import ARCHITECTURES, LINEAR_NAMES, ModelShape, model_shape
from trials.model.loading import check_targets, linear_names
from trials.model.memory_estimate import linear_shapes, sizes_of

SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32}


@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), MistralConfig(**SMALL)], ids=ARCHITECTURES)
def test_the_linear_layers_are_those_of_the_model(config: Any) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert linear_names(model) == set(LINEAR_NAMES)
    sizes = sizes_of(ModelShape.of(config), 4, is_quantized=False)
    assert linear_shapes(sizes, config.vocab_size).keys() == set(LINEAR_NAMES)


def test_the_shape_is_what_the_config_says() -> None:
    config = MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=128, tie_word_embeddings=True)
    found = ModelShape.of(config)
    assert (found.model_type, found.hidden_size, found.num_key_value_heads) == ("mistral", 64, 2)
    assert (found.sliding_window, found.tie_word_embeddings, found.hidden_act) == (128, True, "silu")
    assert found.head_size == 16
    assert replace(found, head_dim=32).head_size == 32
    assert ModelShape.of(GPT2Config(n_layer=3)).num_hidden_layers == 3  # which calls it otherwise


def test_targets_are_checked_without_a_model_where_its_names_are_known(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"up_gate not in the base model\. Allowed: down_proj, gate_proj"):
        check_targets(search.recipe.model, ["q_proj", "up_gate"])
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *_: pytest.fail("a model was made"))
    check_targets(search.recipe.model, ["q_proj", "lm_head"])


def test_targets_of_other_models_are_those_of_the_model(tmp_path: Path) -> None:
    GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=8).save_pretrained(tmp_path)
    settings = ModelSettings(name=str(tmp_path))
    check_targets(settings, ["lm_head"])
    with pytest.raises(ModelError, match=r"q_proj not in the base model\. Allowed: lm_head"):
        check_targets(settings, ["q_proj"])


def test_search_json_keeps_the_shape(search: Search, tmp_path: Path) -> None:
    shape = model_shape(search.recipe.model.name, None)
    run = make_run(tmp_path / "run", replace(search, base=shape))
    assert run.read_search().base == shape
    run.write_search(search)
    assert run.read_search().base is None
    assert run.read_search().shape == shape


def test_a_session_that_knows_the_shape_loads_no_torch(search: Search, tmp_path: Path) -> None:
    """It's what holds Ray and Optuna all search."""
    run = make_run(tmp_path / "run", replace(search, base=search.shape))
    script = f"""
import sys
from pathlib import Path
from orchestrator.planning.memory_bounds import memory_bounds
from orchestrator.planning.forecast import forecast_search
from orchestrator.planning.placement import plan_placement
from orchestrator.state.run_dir import RunDir
import orchestrator.controller.controller, orchestrator.supervisor.session, orchestrator.execution.tune_run
search = RunDir(Path({str(run.path)!r})).read_search()
plan_placement(search, gpus=0, cores=[2])
assert memory_bounds(search)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert isinstance(RunDir(run.path).read_search().base, ModelShape)
