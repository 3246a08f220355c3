"""Texts that no tokenizer takes: refused before a model loads, wherever a person gives them."""

from __future__ import annotations

import copy
import io

import pytest
from transformers import PreTrainedTokenizerBase

from trials.data.tokenization import NotRendered, render
from trials.errors import InputError
from trials.formats.conversations import Message
from trials.formats.texts import fault_in, refuse_unreadable
from trials.generate import main

HALF = "half \ud83d"


@pytest.mark.parametrize("text", ["", "yes", "Zoë 😀", "a\tb\nc", "\ufffd", "\u2028"])
def test_what_people_write_is_fine(text: str) -> None:
    assert fault_in(text) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HALF, r"half a character (the lone surrogate \ud83d at 6)"),
        ("\udce9t\u00e9", r"half a character (the lone surrogate \udce9 at 1)"),
        ("a\0b", "a NUL character at 2"),
    ],
)
def test_what_no_tokenizer_takes_is_said(text: str, fault: str) -> None:
    assert fault_in(text) == fault
    with pytest.raises(InputError, match=r"the question holds .*Give it in UTF-8, without that"):
        refuse_unreadable(text, "the question")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--prompt", HALF], "the prompt"),
        (["--prompt", "x", "--system", HALF], "--system"),
        (["--prompt", "-"], "prompt"),
    ],
)
def test_a_prompt_is_refused_before_the_model_is_looked_for(
    arguments: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(HALF))
    assert main(["./no-such-model", *arguments]) == 2
    assert f"{what} holds half a character" in capsys.readouterr().err


def test_standard_input_in_another_encoding_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Zoë".encode("latin-1")), encoding="utf-8"))
    assert main(["./no-such-model", "--prompt", "-"]) == 2
    assert "standard input is not utf-8 text" in capsys.readouterr().err


def test_a_template_that_writes_half_a_character_can_t_render(tokenizer: PreTrainedTokenizerBase) -> None:
    used = copy.deepcopy(tokenizer)
    used.chat_template = r"{{ messages[0]['content'] + '\ud83d' }}"
    with pytest.raises(NotRendered, match="surrogates not allowed"):
        render([Message("user", "Hi.")], used, is_open=False)
