import json
import random
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from scripts.demo.make_data import DEMO_FOLDER, main, make_splits, to_jsonl
from scripts.demo.phenomena import PHENOMENA
from tests.support.nli_oracle import entails

Row = dict[str, Any]
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    lines = {split: (DEMO_FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in SPLITS}
    return {split: [json.loads(line) for line in lines[split]] for split in SPLITS}


def test_the_committed_files_are_a_fresh_generation() -> None:
    for split, cases in make_splits().items():
        assert (DEMO_FOLDER / f"{split}.jsonl").read_bytes() == to_jsonl(split, cases).encode()


def test_another_seed_gives_other_rows() -> None:
    assert make_splits(1)["dev"] != make_splits(2)["dev"]


def test_check_finds_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_demo_data", "--to", str(tmp_path)])
    main()
    monkeypatch.setattr(sys, "argv", ["make_demo_data", "--to", str(tmp_path), "--check"])
    main()
    with (tmp_path / "dev.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(SystemExit, match=r"dev\.jsonl"):
        main()


def test_there_are_enough_rows_of_each_phenomenon(rows: dict[str, list[Row]]) -> None:
    assert [len(rows[split]) >= least for split, least in zip(SPLITS, (4000, 500, 500), strict=True)] == [True] * 3
    for split in SPLITS:
        assert set(Counter(row["id"].split("-")[-1] for row in rows[split])) == set(PHENOMENA)
    ids = [row["id"] for row in chain(*rows.values())]
    assert len(set(ids)) == len(ids)


def test_labels_are_balanced(rows: dict[str, list[Row]]) -> None:
    for split in SPLITS:
        assert abs(sum(row["label"] for row in rows[split]) / len(rows[split]) - 0.5) <= 0.02


def test_no_premise_occurs_twice(rows: dict[str, list[Row]]) -> None:
    premises = [row["premise"] for row in chain(*rows.values())]
    assert len(set(premises)) == len(premises)


def test_every_label_is_what_the_worlds_say(rows: dict[str, list[Row]]) -> None:
    checked = rows["dev"] + rows["test"] + random.Random(0).sample(rows["train"], 1000)
    wrong = [
        row for row in checked if entails(row["id"].split("-")[-1], row["premise"], row["hypothesis"]) != row["label"]
    ]
    assert not wrong


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_a_pair_shares_the_hypothesis_and_differs_in_the_label(phenomenon: str) -> None:
    rng = random.Random(7)
    for _ in range(100):
        yes, no = PHENOMENA[phenomenon](rng)
        assert (yes.hypothesis, yes.label, no.label) == (no.hypothesis, 1, 0)
        assert entails(phenomenon, yes.premise, yes.hypothesis)
        assert not entails(phenomenon, no.premise, no.hypothesis)


def test_thoughts_are_short_steps_that_end_with_the_label(rows: dict[str, list[Row]]) -> None:
    for row in chain(*rows.values()):
        thought = row["thought_process"]
        assert thought.startswith("step 1: ")
        assert all(f" step {number}: " in thought for number in (2, 3))
        assert thought.endswith("the hypothesis follows." if row["label"] else "the hypothesis does not follow.")
        assert 15 <= len(thought.split()) <= 45


def bag_of_words_accuracy(rows: dict[str, list[Row]], field: str) -> float:
    """The higher of the accuracies on dev and test of a classifier that sees only one field's words."""
    vectorizer = CountVectorizer()
    model = LogisticRegression(max_iter=2000)
    model.fit(vectorizer.fit_transform(row[field] for row in rows["train"]), [row["label"] for row in rows["train"]])
    return max(
        float(
            model.score(vectorizer.transform(row[field] for row in rows[split]), [row["label"] for row in rows[split]])
        )
        for split in ("dev", "test")
    )


def test_the_hypothesis_alone_does_not_give_the_label_away(rows: dict[str, list[Row]]) -> None:
    assert bag_of_words_accuracy(rows, "hypothesis") <= 0.60


def test_the_premise_alone_does_not_give_the_label_away(rows: dict[str, list[Row]]) -> None:
    assert bag_of_words_accuracy(rows, "premise") <= 0.65


@pytest.mark.parametrize(
    ("phenomenon", "premise", "hypothesis", "expected"),
    [
        ("quantifier", "All animals in Lisk are wet.", "All dogs in Lisk are wet.", True),
        ("quantifier", "Some animals in Lisk are wet.", "Some dogs in Lisk are wet.", False),
        ("kind", "Anna has no poodle. Ben has no dog.", "Anna has no dog.", False),
        ("number", "Anna has at least 9 figs.", "Anna has more than 9 figs.", False),
        ("time", "Anna came after Ben. Cleo came before Ben.", "Cleo came before Anna.", True),
        ("opposite", "Anna is not happy.", "Anna is sad.", False),
        ("junction", "Anna bought a saw or a drum but not a drum.", "Anna bought a saw.", True),
        ("conditional", "If Anna sings then Ben waits. Ben waits.", "Anna sings.", False),
    ],
)
def test_the_judge_knows_these(phenomenon: str, premise: str, hypothesis: str, expected: bool) -> None:
    assert entails(phenomenon, premise, hypothesis) is expected
