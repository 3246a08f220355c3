"""Text that no tokenizer takes: half of a character, or the character NUL."""

from __future__ import annotations

from trials.errors import InputError


def fault_in(text: str) -> str | None:
    """Return what a text holds that no tokenizer takes, and its position, counted from 1; None if there is nothing."""
    if "\0" in text:
        return f"a NUL character at {text.index(chr(0)) + 1}"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!a}".strip("'")
        return f"half a character (the lone surrogate {half} at {error.start + 1})"
    return None


def refuse_unreadable(text: str, what: str) -> None:
    """Raise `InputError` for a text that no tokenizer takes, such as an argument that isn't in UTF-8."""
    fault = fault_in(text)
    if fault is not None:
        raise InputError(f"{what} holds {fault}. Give it in UTF-8, without that.")
