"""Chat templates for base models that come without one."""

from __future__ import annotations

from pathlib import Path

from trials.errors import ModelError
from trials.source import expanded

_FOLDER = Path(__file__).parent / "chat_templates"
TEMPLATES = tuple(sorted(file.stem for file in _FOLDER.glob("*.jinja")))
"""mistral: `[INST] question [/INST] answer`; zephyr: `<|user|>` and `<|assistant|>` on lines, EOS after each turn."""


def chat_template(name: str) -> str:
    """The text of a template that ships with the project, or of a Jinja file. Raises `ModelError` if there is none."""
    file = _FOLDER / f"{name}.jinja" if name in TEMPLATES else expanded(name)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"no chat template {name!r}. Allowed for model.chat_template: {', '.join(TEMPLATES)}, or a Jinja file."
        ) from error
