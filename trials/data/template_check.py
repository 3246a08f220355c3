"""Check that a chat template can render a conversation, before any row is tokenised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trials.data.tokenization import NotRendered, render
from trials.formats.bad_rows import BadRow
from trials.formats.conversations import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TemplateCheck:
    """Tries a template on every sequence of roles once, with a word in place of each content.

    Templates refuse roles and their order, and hardly ever a content, so rows with the same roles share one result. It
    also finds templates that silently leave a turn out, often the system's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._refusals: dict[tuple[str, ...], str | None] = {}

    def check(self, example: Example) -> None:
        """Raise `BadRow` if the template can't render a conversation of these roles, or leaves a turn out."""
        if not example.prompt or self._tokenizer.chat_template is None:
            return
        roles = tuple(message.role for message in example.messages)
        if roles not in self._refusals:
            self._refusals[roles] = self._refusal(roles)
        refusal = self._refusals[roles]
        if refusal is not None:
            raise BadRow(refusal)

    def _refusal(self, roles: tuple[str, ...]) -> str | None:
        messages = [Message(role, f"word{number}x") for number, role in enumerate(roles, start=1)]
        try:
            render(messages, self._tokenizer, is_open=False)
            asked = render(messages[:-1], self._tokenizer, is_open=True)
        except NotRendered as error:
            return f"{error.reason}; change the row, or set another model.chat_template"
        missing = next((number for number, message in enumerate(messages[:-1]) if message.content not in asked), None)
        if missing is None:
            return None
        return (
            f"the chat template leaves out message {missing + 1}, of role {roles[missing]!r}; "
            "remove it from the row, or set another model.chat_template (mistral and zephyr show it)"
        )
