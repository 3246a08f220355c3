"""The guide's config files: executed as they are, translated into our settings, under environment and --set."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from search_spaces.guide.config import GuideConfig, read_guide_config
from search_spaces.loader import ResolvedRecipe, load_recipe
from search_spaces.schema import Recipe
from tests.support.guide_configs import ABLATION, BY_PACKAGE, BY_PATH, DEFAULT, write
from trials.errors import RecipeError

BUILT_IN = "the guide's default"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder as in the guide's repository, with a default of its own."""
    write(tmp_path / "train" / "configs" / "default.py", DEFAULT)
    return tmp_path / "train" / "configs"


def _read(folder: Path, text: str) -> GuideConfig:
    return read_guide_config(str(write(folder / "mine.py", text)))


def _resolve(config: GuideConfig, *assignments: str, **environ: str) -> ResolvedRecipe:
    return load_recipe("demo", assignments, environ, config)


def _recipe(folder: Path, text: str, *assignments: str) -> Recipe:
    return _resolve(_read(folder, text), *assignments).recipe


@pytest.mark.parametrize("head", [BY_PACKAGE, BY_PATH])
def test_a_file_extends_the_default_beside_it(configs: Path, head: str) -> None:
    resolved = _resolve(_read(configs, head + ABLATION))
    recipe, sources = resolved.recipe, resolved.sources
    values = recipe.hyperparameters
    assert (values.learning_rate, values.lora_rank, values.lora_alpha, values.max_grad_norm) == (3e-4, 32, 64, 1.0)
    assert (values.effective_batch, recipe.machine.micro_batch_rows) == (32, 8)
    assert (values.epochs, values.train_tokens, values.rows_seen) == (3, None, None)
    assert recipe.evaluation.every_rows == 10 * 32
    assert (recipe.machine.checkpoint_every_rows, recipe.machine.keep_checkpoints) == (500 * 32, None)
    assert (recipe.tracking.wandb, recipe.tracking.project, recipe.tracking.run_name) == (True, "mine", "ablation")
    assert recipe.search.seed == 7
    assert sources["hyperparameters.effective_batch"] == "mine.py"
    assert sources["hyperparameters.epochs"] == "default.py"
    assert sources["evaluation.every_rows"] == sources["machine.checkpoint_every_rows"] == "default.py, mine.py"
    assert sources["search.budget"] == "demo.yaml"


@pytest.mark.parametrize("head", [BY_PACKAGE, BY_PATH])
def test_without_a_default_beside_it_the_guides_is_taken(tmp_path: Path, head: str) -> None:
    resolved = _resolve(_read(tmp_path, head + ABLATION))
    values, sources = resolved.recipe.hyperparameters, resolved.sources
    assert (values.epochs, values.warmup_fraction, values.effective_batch) == (2, 0.03, 32)
    assert resolved.recipe.model.name == "mistralai/Mistral-7B-v0.3"
    assert resolved.recipe.data.max_length_tokens == 512
    assert (resolved.recipe.machine.checkpoint_every_rows, resolved.recipe.machine.keep_checkpoints) == (250 * 32, 2)
    assert sources["hyperparameters.epochs"] == BUILT_IN
    assert sources["hyperparameters.learning_rate"] == "mine.py"


def test_the_default_of_an_archived_file_lies_one_folder_up(configs: Path) -> None:
    assert _recipe(configs / "archive", BY_PATH + "batch_size = 2\n").search.seed == 7


def test_a_file_that_extends_one_that_extends_the_default(configs: Path) -> None:
    write(configs / "best.py", BY_PACKAGE + "learning_rate = 1e-3\nseed = 8\n")
    config = _read(configs, "from configs.best import *\n\nseed = 9\n")
    assert [config.values[name] for name in ("seed", "learning_rate", "num_epochs")] == [9, 1e-3, 3]
    assert [config.sources[name] for name in ("seed", "learning_rate", "num_epochs")] == [
        "mine.py",
        "best.py",
        "default.py",
    ]


def test_what_is_imported_last_stands(configs: Path) -> None:
    config = _read(configs, "seed = 9\nlora_r = 4\n" + BY_PACKAGE)
    assert (config.values["seed"], config.sources["seed"]) == (7, "default.py")
    assert (config.values["lora_r"], config.sources["lora_r"]) == (4, "mine.py")


def test_a_file_that_extends_nothing_leaves_the_rest_to_the_recipe(tmp_path: Path) -> None:
    demo = load_recipe("demo", environ={}).recipe
    recipe = _recipe(tmp_path, "lora_r = 4\n")
    assert recipe.hyperparameters.lora_rank == 4
    assert recipe.hyperparameters.train_tokens == demo.hyperparameters.train_tokens
    assert recipe.evaluation == demo.evaluation
    assert recipe.model == demo.model


def test_a_lone_batch_size_takes_its_partner_from_the_guides_default(tmp_path: Path) -> None:
    resolved = _resolve(_read(tmp_path, "batch_size = 8\n"))
    assert resolved.recipe.hyperparameters.effective_batch == 16
    assert resolved.sources["hyperparameters.effective_batch"] == f"mine.py, {BUILT_IN}"


def test_distributed_training_stands_for_two_gpus(configs: Path) -> None:
    text = BY_PACKAGE + "batch_size = 8\ngrad_accumulation_steps = 2\ndistributed_training = True\n"
    recipe = _recipe(configs, text)
    assert (recipe.hyperparameters.effective_batch, recipe.machine.micro_batch_rows) == (32, 8)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "use_wandb"])
@pytest.mark.parametrize("value", [False, True])
def test_false_stays_false_and_true_stays_true(configs: Path, name: str, value: bool) -> None:
    recipe = _recipe(configs, BY_PACKAGE + f"{name} = {value}\n")
    found = recipe.machine.gradient_checkpointing if name == "gradient_checkpointing" else recipe.tracking.wandb
    assert found is value


def test_no_clipping_is_no_clipping(configs: Path) -> None:
    assert _recipe(configs, BY_PACKAGE).hyperparameters.max_grad_norm is None


def test_the_other_names(tmp_path: Path) -> None:
    text = (
        "target_modules = ['q_proj', 'v_proj']\noptim = 'paged_adamw_8bit'\nlr_scheduler = 'linear'\n"
        "lora_dropout = 0\nweight_decay = 0.1\nmax_seq_length = 300\nwarmup_ratio = 0.1\nwandb_run_id = 'abc'\n"
        "max_train_samples = 50\nmax_eval_samples = None\nwandb_project = None\nwandb_run_name = 'it'\n"
    )
    recipe = _recipe(tmp_path, text)
    values = recipe.hyperparameters
    assert (values.target_modules, values.optimizer) == (("q_proj", "v_proj"), "paged_adamw_8bit")
    assert (values.scheduler, values.lora_dropout, values.weight_decay) == ("linear", 0, 0.1)
    assert (values.warmup_fraction, recipe.data.max_length_tokens) == (0.1, 300)
    assert (recipe.data.train_rows, recipe.data.eval_rows) == (50, None)
    assert (recipe.tracking.run_id, recipe.tracking.run_name) == ("abc", "it")
    assert recipe.tracking.project == Recipe.model_fields["tracking"].default.project


def test_data_and_model_are_relative_to_the_current_folder(in_tmp_path: Path) -> None:
    write(in_tmp_path / "base" / "config.json", "{}")
    text = "model_id = 'base'\ntrain_data = 'data/train.jsonl'\neval_data = 'data/dev.jsonl'\n"
    recipe = _recipe(in_tmp_path / "train" / "configs", text)
    assert recipe.model.name == str(in_tmp_path / "base")
    assert recipe.data.train == str(in_tmp_path / "data" / "train.jsonl")
    assert recipe.data.eval == str(in_tmp_path / "data" / "dev.jsonl")


def test_what_a_file_sets_is_searched_no_more(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "lora_r = 8\n")
    assert "lora_rank" not in recipe.space
    assert not any("lora_rank" in values for values in recipe.start.values())
    assert "learning_rate" in recipe.space


def test_recipe_then_file_then_environment_then_command_line(tmp_path: Path) -> None:
    config = _read(tmp_path, "seed = 1\nlora_r = 1\nlora_alpha = 1\n")
    environ = {"ORCHESTRATOR__LORA_RANK": "2", "ORCHESTRATOR__LORA_ALPHA": "2"}
    resolved = _resolve(config, "lora_alpha=3", **environ)
    assert resolved.recipe.search.budget == load_recipe("demo", environ={}).recipe.search.budget
    values = resolved.recipe.hyperparameters
    assert (resolved.recipe.search.seed, values.lora_rank, values.lora_alpha) == (1, 2, 3)
    assert resolved.sources["search.seed"] == "mine.py"
    assert resolved.sources["hyperparameters.lora_rank"] == "environment (ORCHESTRATOR__LORA_RANK)"
    assert resolved.sources["hyperparameters.lora_alpha"] == "--set"


def test_a_guides_name_on_the_command_line_goes_before_all(configs: Path) -> None:
    config = _read(configs, BY_PACKAGE + ABLATION)
    resolved = _resolve(config, "batch_size=2", ORCHESTRATOR__EFFECTIVE_BATCH="128")
    assert resolved.recipe.hyperparameters.effective_batch == 2 * 4
    assert resolved.recipe.machine.micro_batch_rows == 2
    assert resolved.recipe.evaluation.every_rows == 10 * 8
    assert resolved.sources["hyperparameters.effective_batch"] == "--set, mine.py"
    assert resolved.sources["hyperparameters.learning_rate"] == "mine.py"


def test_our_names_are_understood_beside_the_guides(configs: Path) -> None:
    config = _read(configs, BY_PACKAGE)
    resolved = _resolve(config, "use_wandb=false", "hyperparameters.lora_rank=5", "patience=9")
    assert resolved.recipe.tracking.wandb is False
    assert resolved.recipe.hyperparameters.lora_rank == 5
    assert resolved.recipe.evaluation.patience == 9
    both = _resolve(config, "batch_size=2", "effective_batch=6")
    assert both.recipe.hyperparameters.effective_batch == 6


def test_guides_names_mean_nothing_without_a_config_file() -> None:
    with pytest.raises(RecipeError, match="unknown key 'grad_accumulation_steps'"):
        load_recipe("demo", ["grad_accumulation_steps=2"], {})


def test_the_guides_default_without_a_file() -> None:
    resolved = _resolve(read_guide_config("default"), "num_epochs=1")
    assert resolved.recipe.hyperparameters.effective_batch == 32
    assert resolved.recipe.hyperparameters.max_grad_norm is None
    assert resolved.sources["hyperparameters.effective_batch"] == BUILT_IN
    assert resolved.sources["hyperparameters.epochs"] == "--set"


def test_helpers_are_no_settings(configs: Path) -> None:
    text = (
        "import math\nfrom pathlib import Path\nfrom math import pi\n\n"
        "base_rate = 1e-4\n_scale = 3\nroot = Path('models')\n\n"
        "def scaled(rate):\n    factor = _scale\n    return rate * factor\n\n"
        "class Choice:\n    depth = 1\n\n"
        "learning_rate = scaled(base_rate)\nlora_r: int = max(n for n in (4, 8))\noutput_dir = root / 'x'\n"
        "if use_wandb_here := False:\n    wandb_name = 'x'\nuse_wandb = use_wandb_here\n"
    )
    config = _read(configs, BY_PATH + text)
    assert config.values["learning_rate"] == pytest.approx(3e-4)
    assert config.values["output_dir"] == str(Path("models") / "x")
    assert config.helpers == ("base_rate", "root", "use_wandb_here")
    assert not config.values.keys() & {"base_rate", "pi", "current_dir", "default_path", "root", "Choice", "_scale"}
    assert _resolve(config).recipe.hyperparameters.lora_rank == 8


def test_a_helper_of_the_default_is_one_of_the_file_too(configs: Path) -> None:
    write(configs / "default.py", DEFAULT + "steps = 4\n")
    config = _read(configs, BY_PACKAGE + "grad_accumulation_steps = steps\n")
    assert _resolve(config).recipe.hyperparameters.effective_batch == 16
    assert config.helpers == ("steps",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate = 1e-4", r"mine\.py: unknown name 'lerning_rate'; the nearest known one is 'learning_rate'\. "),
        ("warmup_steps = 0.03", r"mine\.py: unknown name 'warmup_steps'; the nearest known one is 'warmup_ratio'\. "),
        ("LORA_R = 16", "unknown name 'LORA_R'; the nearest known one is 'lora_r'"),
        ("zzz = 1", "unknown name 'zzz'; known are: batch_size, "),
        ("batch_size = '8'", r"mine\.py: batch_size = '8' is not allowed: give a whole number of at least 1\."),
        ("batch_size = True", "batch_size = True is not allowed: give a whole number"),
        ("batch_size = 0", "batch_size = 0 is not allowed: give a whole number of at least 1"),
        ("use_wandb = 'no'", "use_wandb = 'no' is not allowed: give True or False"),
        ("learning_rate = 'fast'", "learning_rate = 'fast' is not allowed: give a number"),
        ("learning_rate = float('nan')", "learning_rate = nan is not allowed: give a number"),
        ("max_grad_norm = '1'", "max_grad_norm = '1' is not allowed: give a number, or None"),
        ("target_modules = 'q_proj'", "target_modules = 'q_proj' is not allowed: give a list of names"),
        ("gpu_id = -1", "gpu_id = -1 is not allowed: give a whole number of at least 0"),
        ("use_packing = True", "use_packing = True is not allowed: rows are never packed here"),
        ("resume_from_checkpoint = 'models/x'", "resume_from_checkpoint = 'models/x' is not allowed: .* --resume DIR"),
        ("save_steps = 0.1", r"mine\.py: save_steps = 0\.1 is not allowed: give a whole number of at least 1\."),
        ("save_total_limit = 0", "save_total_limit = 0 is not allowed: give a whole number of at least 1, or None"),
        ("learning_rate = 5.0", r"hyperparameters\.learning_rate=5\.0 \(from mine\.py\) is not allowed"),
        ("lr_scheduler = 'polynomial'", r"hyperparameters\.scheduler='polynomial' \(from mine\.py\) is not allowed"),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _recipe(tmp_path, text + "\n")


def test_all_that_is_wrong_is_said_at_once_and_by_the_file_that_said_it(configs: Path) -> None:
    write(configs / "default.py", DEFAULT + "batch_sise = 4\n")
    with pytest.raises(RecipeError) as caught:
        _recipe(configs, BY_PACKAGE + "lora_r = 'x'\n", "use_wandb=7")
    lines = str(caught.value).split("\n")
    assert lines[0] == "the config file:"
    assert {line.strip().split(":")[0] for line in lines[1:]} == {"default.py", "--set", "mine.py"}


def test_the_command_line_mends_a_file(tmp_path: Path) -> None:
    assert _recipe(tmp_path, "batch_size = '8'\nuse_packing = True\n", "batch_size=8", "use_packing=false")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("bach_size=8", "--set: unknown key 'bach_size'; the nearest known one is 'batch_size'"),
        ("batch_size=x", "--set: batch_size = 'x' is not allowed: give a whole number"),
        ("patiense=8", r"--set: unknown key 'patiense'; the nearest known one is 'evaluation\.patience'"),
        ("batch_size", "--set 'batch_size' is not of the form key=value"),
    ],
)
def test_what_the_command_line_must_not_say(assignment: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _resolve(read_guide_config("default"), assignment)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("batch_size = = 8", r"line 1: SyntaxError: invalid syntax"),
        ("batch_size = 8\nlora_r = rank * 2", r"line 2: NameError: name 'rank' is not defined"),
        ("def f():\n    return 1 / 0\n\nlora_r = f()", r"line 2: ZeroDivisionError: division by zero"),
        ("from configs.best import *", r"line 1: ModuleNotFoundError: No module named 'configs\.best'"),
        ("import sys\nsys.exit('no')", r"line 2: SystemExit: no"),
        ("from configs.broken import *", r"broken\.py, line 3: KeyError: 'gone'"),
        ("from configs.unreadable import *", r"unreadable\.py, line 1: SyntaxError: "),
        (None, "FileNotFoundError: "),
    ],
)
def test_a_file_that_fails_to_load_stops_the_command(
    tmp_path: Path, text: str | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "broken.py", "x = {}\n\ny = x['gone']\n")
    write(tmp_path / "unreadable.py", "x = (\n")
    file = tmp_path / "mine.py"
    if text is not None:
        write(file, text)
    before = _import_state()
    with pytest.raises(RecipeError, match=f"can't load the config file .*mine.py: {reason}.*--fallback-to-default"):
        read_guide_config(str(file))
    assert _import_state() == before
    with caplog.at_level(logging.WARNING, logger="search_spaces"):
        config = read_guide_config(str(file), fallback=True)
    assert config == read_guide_config("default")
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("warning: can't load the config file")
    assert caplog.messages[0].endswith(". The guide's default is used.")


def test_no_fallback_for_a_file_that_loads(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", "lerning_rate = 1e-4\n")
    with pytest.raises(RecipeError, match="unknown name"):
        _resolve(read_guide_config(str(file), fallback=True))


def _import_state() -> tuple[list[str], list[object], dict[str, object]]:
    return list(sys.path), list(sys.meta_path), dict(sys.modules)


def test_nothing_of_a_file_stays_behind(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "configs.default", "default", "train"):
        monkeypatch.setitem(sys.modules, name, sys)  # someone else's modules of these names
    before = _import_state()
    assert _read(configs, BY_PATH).values["seed"] == 7
    assert _import_state() == before
    assert not list(configs.rglob("__pycache__"))


def test_a_library_that_a_file_imports_is_the_real_one(configs: Path) -> None:
    write(configs / "decoder.py", "raise RuntimeError\n")
    write(configs / "json.py", "raise RuntimeError\n")
    text = "import json.decoder\nimport yaml\nseed = yaml.safe_load('5') + json.loads('1')\n"
    assert _read(configs, text).values["seed"] == 6


def test_where_a_trial_goes_and_on_which_gpu(configs: Path) -> None:
    config = _read(configs, BY_PACKAGE + ABLATION)
    assert config.output_dir == Path("models/ablation")
    assert config.gpu({}) == "1"
    assert config.gpu({"CUDA_VISIBLE_DEVICES": "0"}) is None
    asked, _ = config.overridden(["gpu_id=3"])
    assert asked.gpu({"CUDA_VISIBLE_DEVICES": "0"}) == "3"
    silent = _read(configs, "lora_r = 4\n")
    assert (silent.output_dir, silent.gpu({})) == (None, None)


def test_names_without_effect_are_told_in_one_line(configs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="search_spaces"):
        _read(configs, BY_PACKAGE + "use_packing = False\nresume_from_checkpoint = None\n").log_unused()
        _read(configs, "lora_r = 4\n").log_unused()
        _read(configs, "rank = 4\nlora_r = rank\n").log_unused()
    assert caplog.messages == [
        "config file: without effect here: logging_steps, use_packing, resume_from_checkpoint",
        "config file: read again in it, so not taken for settings: rank",
    ]
