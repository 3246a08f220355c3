"""Tokens that a tokenizer has and its model doesn't know: the embedding has no row for their ids.

This happens if tokens were added to a tokenizer, and the model was never resized. On a GPU such an id ends the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trials.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trials.data.split import Split


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that a model knows: ids from 0 to `size` - 1."""

    model: str
    """Model's name, for messages."""
    size: int

    def refuse_rows(self, splits: Mapping[str, Split], tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ModelError` if rows hold a token that the model doesn't know.

        The keys of `splits` are named in the message. Rows are read only if the tokenizer has such a token at all.
        """
        if not self._lacks_some_of(tokenizer):
            return
        for name, split in splits.items():
            if _largest_id(split) >= self.size:
                row = next(row for row in split.rows if max(row.input_ids, default=0) >= self.size)
                self._refuse(row.input_ids, tokenizer, f"{name} rows hold", f", the first of them row {row.id}")

    def refuse_prompt(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ModelError` if the ids of a prompt hold a token that the model doesn't know."""
        if max(ids, default=0) >= self.size:
            self._refuse(ids, tokenizer, "the prompt holds", "")

    def _lacks_some_of(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        return max(tokenizer.get_vocab().values(), default=0) >= self.size

    def _refuse(self, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, who: str, where: str) -> None:
        unknown = next(each for each in ids if each >= self.size)
        raise ModelError(
            f"{who} the token {tokenizer.convert_ids_to_tokens(unknown)!r} (id {unknown}){where}, and the model "
            f"{self.model!r} knows {self.size:,} tokens (0 to {self.size - 1}): the token was added to the tokenizer, "
            "and the model wasn't resized. Use the tokenizer that belongs to the model, or take the token out of what "
            "is given or of the chat template."
        )


def _largest_id(split: Split) -> int:
    """Return the largest id in any row, from the memory-mapped file without making Python objects of it."""
    import pyarrow.compute as pc

    chunks = split.dataset.data.column("input_ids").chunks
    found = (pc.max(pc.list_flatten(chunk)).as_py() for chunk in chunks)
    return max((each for each in found if each is not None), default=0)
