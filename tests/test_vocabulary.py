"""Words that the glossary has replaced (docs/architecture.md) don't come back, in names, docstrings or messages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.support.cli import ROOT

RETIRED = (
    r"nights?|tonight|desks?|suspects?|promises?|promised|bids?|bidders?|roster|outlook|persever\w*|rehears\w*|guests?|"
    r"pulse|holders?|stretch|stretches|conductors?|milestones?|workplaces?|mishaps?|trainees?"
)
WORD = re.compile(rf"(?<![a-z])({RETIRED})(?![a-z])", re.IGNORECASE)
RETIRED_METHODS = {"take", "note", "tell", "settle", "stand"}
SOURCES = [
    file
    for package in ("benchmarks", "orchestrator", "scripts", "search_spaces", "trials")
    for file in sorted((ROOT / package).rglob("*.py"))
    if "demo" not in file.relative_to(ROOT).parts  # texts of an invented world
]
SPOKEN = (tokenize.NAME, tokenize.STRING, tokenize.COMMENT)


def words_of(file: Path) -> list[str]:
    source = file.read_text(encoding="utf-8")
    spoken = (token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type in SPOKEN)
    return [
        f"{file.relative_to(ROOT)}:{token.start[0]}: {found[0]}"
        for token in spoken
        for found in WORD.finditer(re.sub("[_-]", " ", token.string))
    ]


@pytest.mark.parametrize("name", ["night_search", "Tonight", "the_desk", "suspects", '"""Of a night."""'])
def test_retired_words_are_recognised(name: str) -> None:
    assert WORD.search(name.replace("_", " "))


@pytest.mark.parametrize("name", ["placeholder", "forbidden", "member", "midnight"])
def test_other_words_are_not(name: str) -> None:
    assert not WORD.search(name.replace("_", " "))


def test_no_retired_word_is_used() -> None:
    assert [found for file in SOURCES for found in words_of(file)] == []


def test_no_public_method_has_a_verb_of_several_meanings() -> None:
    assert [
        f"{file.relative_to(ROOT)}: {node.name}.{method.name}"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name in RETIRED_METHODS
    ] == []
