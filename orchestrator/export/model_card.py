"""README.md of an export: what the adapter is, how it was chosen and verified, how to load it."""

from __future__ import annotations

import json
from typing import Any

from search_spaces.schema import Recipe
from trials.metrics.intervals import Estimate
from trials.metrics.paired_tests import CANNOT_TELL
from trials.metrics.score_names import NAMES, shown
from trials.metrics.task_scores import Measure
from trials.records.trial_dir import Origin


def model_card(manifest: dict[str, Any], recipe: Recipe) -> str:
    """Return Markdown, with the front matter that model hubs read, from the manifest and the recipe."""
    settings = manifest["config"]["hyperparameters"]
    sections = [
        _front_matter(manifest),
        f"# QLoRA adapter from the search `{recipe.name}`",
        f"Trial {manifest['trial']} was the best of {manifest['trials']} that were trained and evaluated. "
        f"Base model: `{manifest['base_model']['name']}`, revision {manifest['base_model']['revision'] or 'newest'}, "
        f"quantisation {recipe.model.quantization}.",
        "## Losses\n\nNats per completion token, token-weighted, on the same rows.\n\n" + _losses(manifest),
        *_scores(manifest.get("scores")),
        _verified(manifest["verified"]),
        *_skipped(manifest.get("skipped") or []),
        "## Configuration\n\n" + _table(("hyperparameter", "value"), [(k, v) for k, v in settings.items()]),
        "## Loading it\n\n" + _loading(recipe),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: dict[str, Any]) -> str:
    base = json.dumps(manifest["base_model"]["name"], ensure_ascii=False)  # a path may hold what YAML reads otherwise
    lines = ["---", "library_name: peft", f"base_model: {base}", "tags: [qlora, lora, peft]", "---"]
    return "\n".join(lines)


def _losses(manifest: dict[str, Any]) -> str:
    rows: list[tuple[str, str, str]] = [("winner", f"{manifest['eval_loss']:.4f}", "")]
    rows.append(("base", f"{manifest['base_eval_loss']:.4f}", _gain(manifest["gain"])))
    for start in manifest["starting_points"]:
        loss = "" if start["eval_loss"] is None else f"{start['eval_loss']:.4f}"
        rows.append((f"starting point `{start['name']}` (trial {start['trial']})", loss, _gain(start)))
    text = _table(("what", "eval loss", "the winner is better by"), rows)
    test = manifest["test"]
    if test is None:
        return text
    return (
        f"{text}\n\nOn {test['rows']} test rows that the search never looked at: winner {test['eval_loss']:.4f}, "
        f"base {test['base_eval_loss']:.4f}, better by {_gain(test)}."
    )


def _scores(scores: dict[str, Any] | None) -> list[str]:
    """Return the section on task scores; empty if there are no scores."""
    if scores is None:
        return []
    measure = Measure(scores["measure"])

    def interval(found: dict[str, Any], unit: str = " %") -> str:
        return shown(Estimate(found["value"], found["low"], found["high"]), measure, unit)

    rows = [("winner", interval(scores["winner"]), f"{scores['winner']['tokens_seen']:,}", "")]
    for other in scores["others"]:
        who = "base" if other["origin"] == Origin.BASE else f"starting point `{other['name']}` (trial {other['trial']})"
        better = ""
        if "winner_is_better_by" in other:
            margin = interval(other["winner_is_better_by"], " points")
            better = f"{margin}, {'clear' if other['is_clear'] else CANNOT_TELL}"
        rows.append((who, interval(other), f"{other['tokens_seen']:,}", better))
    note = f"Greedy answers to the first {scores['rows']} eval rows, with 95 % intervals; it decided nothing."
    if not scores["winner"]["of_exported_weights"]:
        note += " The winner's score is of its weights after so many tokens; the exported ones have a lower loss."
    header = ("what", NAMES[measure], "training tokens", "the winner is better by")
    return [f"## Scores\n\n{note}\n\n{_table(header, rows)}"]


def _gain(found: dict[str, Any]) -> str:
    if "difference" not in found:
        return ""
    return f"{found['difference']:.4f} ± {found['standard_error']:.4f} (paired standard error)"


def _verified(verified: dict[str, float] | None) -> str:
    if verified is None:
        return "It has not been verified yet: the time was over before it was loaded again in a fresh process."
    return (
        "## Verification\n\n"
        f"Loaded again in a fresh process by `AutoPeftModelForCausalLM`, it has eval loss {verified['eval_loss']:.5f}, "
        f"{verified['difference']:.1e} from what the trial measured (allowed: {verified['tolerance']:g})."
    )


def _skipped(skipped: list[dict[str, Any]]) -> list[str]:
    """Return the section on better trials that could not be exported; empty if there are none."""
    if not skipped:
        return []
    rows = [(each["trial"], f"{each['eval_loss']:.4f}", each["reason"].replace("|", "\\|")) for each in skipped]
    table = _table(("trial", "eval loss", "why"), rows)
    return [f"## Skipped\n\nThese trials have a lower loss, and could not be exported:\n\n{table}"]


def _loading(recipe: Recipe) -> str:
    quantised = recipe.model.quantization == "nf4"
    imports = "from transformers import AutoTokenizer" + (", BitsAndBytesConfig" if quantised else "")
    lines = ["```python", "from peft import AutoPeftModelForCausalLM", imports, ""]
    argument = ""
    if quantised:
        lines.append(
            'nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)'
        )
        argument = ", quantization_config=nf4"
    lines.append(f'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder"{argument})')
    lines += ['tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")', "```"]
    return "\n".join(lines)


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
