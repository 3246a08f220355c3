"""Chat templates for base models that come without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trials.config import ModelSettings
from trials.errors import ModelError
from trials.sources.source import expanded

_FOLDER = Path(__file__).parent / "chat_templates"
TEMPLATES = tuple(sorted(file.stem for file in _FOLDER.glob("*.jinja")))
"""Names of the project's own templates.

mistral: `[INST] question [/INST] answer`. zephyr: `<|user|>` and `<|assistant|>` on lines, EOS after each turn.
"""


def chosen_template(own: Any, settings: ModelSettings) -> str | None:
    """Return the chat template to use: the one that is set, else the tokenizer's `own`; None if there is neither.

    A tokenizer may have several by name; `default` is its own, and each can be set by its name. Raises `ModelError` if
    the one that is set doesn't exist, or several exist and none is `default` or set.
    """
    named = {str(name): str(text) for name, text in own.items()} if isinstance(own, Mapping) else {}
    if settings.chat_template is not None:
        return named.get(settings.chat_template) or chat_template(settings.chat_template)
    if named and "default" not in named:
        raise ModelError(
            f"the model {settings.name!r} has the chat templates {' and '.join(sorted(named))}, and none of them is "
            f"its default. Give one of them, {', '.join(TEMPLATES)} or a Jinja file as model.chat_template "
            "(of a command without recipe: --chat-template)."
        )
    chosen: str | None = named.get("default", own)
    return chosen


def chat_template(name: str) -> str:
    """Return the text of a template of the project, or of a Jinja file. Raises `ModelError` if there is none."""
    file = _FOLDER / f"{name}.jinja" if name in TEMPLATES else expanded(name)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"no chat template {name!r}. Allowed for model.chat_template: {', '.join(TEMPLATES)}, or a Jinja file."
        ) from error
