"""Conversation with a model: all that was said so far precedes every new question."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trials.data.tokenization import NotRendered, prompt_ids
from trials.errors import InputError
from trials.evaluation.generation import Sampling, answer
from trials.formats.conversations import ASSISTANT, SYSTEM, USER, Message
from trials.formats.texts import refuse_unreadable
from trials.model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Chat:
    """One conversation, with an optional system message before it."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        system: str | None = None,
        known: Vocabulary | None = None,
    ) -> None:
        self._model = model
        self._known = known
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._told = told(system)
        self._said: tuple[Message, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages that the model reads before its next answer."""
        return (*self._told, *self._said)

    def ask(self, question: str, *, printed: bool = False) -> str:
        """Return the answer, and remember question and answer; `printed`: also print it while it is generated.

        Raises `InputError` and `ModelError` as `conversation_ids` does, and `InputError` if no tokenizer takes the
        question.
        """
        refuse_unreadable(question, "the question")
        self._said = (*self._said, Message(USER, question.strip()))
        found = answer(self._model, self._tokenizer, self._fitting_ids(), self._sampling, printed=printed)
        self._said = (*self._said, Message(ASSISTANT, found))
        return found

    def _fitting_ids(self) -> list[int]:
        """Return the ids of the prompt; drop the oldest turns of a conversation longer than the model's context."""
        room = getattr(self._model.config, "max_position_embeddings", None)
        ids = self._ids()
        while room is not None and len(ids) + self._sampling.max_new_tokens > room and len(self._said) > 2:
            self._said = self._said[2:]
            ids = self._ids()
            logger.warning("the conversation is longer than the model can see; its oldest question is forgotten")
        return ids

    def _ids(self) -> list[int]:
        return conversation_ids(self.messages, self._tokenizer, self._known)


def told(system: str | None) -> tuple[Message, ...]:
    """Return the system message as a tuple, empty if there is none."""
    return (Message(SYSTEM, system),) if system else ()


def conversation_ids(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, known: Vocabulary | None
) -> list[int]:
    """Return the ids of a conversation that is to be answered. Raises `InputError` if it can't be rendered.

    Raises `ModelError` if it holds a token that the model doesn't know.
    """
    try:
        ids = prompt_ids(messages, tokenizer)
    except NotRendered as error:
        was_told = messages[0].role == SYSTEM
        remedy = "Leave --system out, or give another --chat-template." if was_told else "Mend the template."
        said = f"the model's chat template can't render the conversation ({error.cause}). {remedy}"
        raise InputError(said) from error
    if known is not None:
        known.refuse_prompt(ids, tokenizer)
    return ids
