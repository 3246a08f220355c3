"""What a chat template refuses, or leaves out, is known before a row is tokenised."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from trials.data.chat_template import chat_template
from trials.data.template_check import TemplateCheck
from trials.formats.bad_rows import BadRow
from trials.formats.conversations import Example, Message, example

ASKED = (Message("user", "Hi."), Message("assistant", "Hello."))
TOLD = Example("r1", (Message("system", "Be brief."), *ASKED))
NO_SYSTEM = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"


def _check(tokenizer: PreTrainedTokenizerBase, template: str | None, row: Example) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = template
    TemplateCheck(used).check(row)


@pytest.mark.parametrize("template", [chat_template("zephyr"), chat_template("mistral"), None])
def test_templates_of_ours_take_every_conversation(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    for row in (TOLD, Example("r1", ASKED), Example("r1", ASKED * 3), Example("r1", ASKED[1:])):
        _check(tokenizer, template, row)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            None,
            r"can't render it \(the roles are user and assistant\); change the row, or set another model.chat_template",
        ),
        (
            NO_SYSTEM,
            r"leaves out message 1, of role 'system'; remove it from the row, or set another model.chat_template",
        ),
        (
            "{{ messages[5].content }}",
            r"the tokenizer's chat template can't render it \(list object has no element 5\)",
        ),
        ("{{ messages | sum }}", r"the tokenizer's chat template can't render it \(unsupported operand"),
    ],
)
def test_what_a_template_does_not_take_is_a_bad_row(
    tokenizer: PreTrainedTokenizerBase, template: str | None, message: str
) -> None:
    with pytest.raises(BadRow, match=message):
        _check(tokenizer, template or str(tokenizer.chat_template), TOLD)


def test_rows_with_the_same_roles_share_one_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    check = TemplateCheck(used)
    check.check(example("r1", "Hi.", "Hello."))
    used.chat_template = "{{ raise_exception('never asked') }}"
    check.check(example("r2", "Ho.", "Hm."))
    with pytest.raises(BadRow, match="never asked"):
        check.check(Example("r3", ASKED * 2))
