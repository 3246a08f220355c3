from pathlib import Path

import pytest

from orchestrator.report.data import read_report_data
from orchestrator.report.scores import ScoreSection, score_section
from orchestrator.state.run_dir import RunDir
from tests.support.report_runs import BASE, STEP_TOKENS, Told, new_run, right, write_export, write_trial
from trials.metrics.task_scores import Measure
from trials.records.trial_dir import Ending
from trials.state import TrialState


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = new_run(tmp_path / "run", ["evaluation.score_rows=40"])
    write_trial(run, Told("0000", BASE.losses, origin=BASE.origin, name=BASE.name, adapter=False, scores={1: right(4)}))
    return run


def section_of(run: RunDir) -> ScoreSection:
    found = score_section(read_report_data(run))
    assert found is not None
    return found


def test_without_a_wish_for_scores_there_is_no_section(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write_trial(run, BASE)
    assert score_section(read_report_data(run)) is None


def test_before_anything_is_scored(tmp_path: Path) -> None:
    found = section_of(new_run(tmp_path / "run", ["evaluation.score_rows=7"]))
    assert (found.rows, found.sentences, found.stages) == (7, ["Nothing was scored so far."], [])


def test_only_the_base_is_scored(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.5]))
    found = section_of(run)
    assert (found.measure, found.rows) == ("accuracy", 40)
    assert found.sentences == ["No trial was scored so far.", "The base model's accuracy is 10.0 % (4.0 to 23.1)."]


def test_stages_have_loss_score_and_places_by_both(run: RunDir) -> None:
    pruned = Ending(TrialState.PRUNED, "place 3 of 3")
    write_trial(run, Told("0001", [1.5, 1.2, 1.1], scores={1: right(20), 3: right(36)}))
    write_trial(run, Told("0002", [1.4, 1.3, 1.2], scores={1: right(20), 3: right(35)}))
    write_trial(run, Told("0003", [1.6], pruned, scores={1: right(22)}))

    rung, second, end = section_of(run).stages

    assert [rung.title, second.title] == ["At 11,111 tokens", "At 33,333 tokens"]
    assert [(row.id, row.loss, row.loss_place, row.score, row.score_place) for row in rung.rows] == [
        ("0002", "1.4000", "1", "50.0 % (35.2 to 64.8)", "2="),
        ("0001", "1.5000", "2", "50.0 % (35.2 to 64.8)", "2="),
        ("0003", "1.6000", "3", "55.0 % (39.8 to 69.3)", "1"),
    ]
    assert [row.id for row in end.rows] == ["0001", "0002"]
    assert [row.is_leader for row in end.rows] == [True, False]


def test_a_stage_says_whether_the_orders_agree(run: RunDir) -> None:
    for number in range(1, 7):
        write_trial(run, Told(f"{number:04d}", [1 + number / 10], scores={1: right(40 - number)}))
    (*_, end) = section_of(run).stages
    assert end.sentences == [
        "Kendall's τ is +1.00 (p = 0.0028, 6 trials): loss and accuracy tend to order these trials alike.",
        "The loss tells 15 pairs apart, and accuracy clearly contradicts it about none of them.",
    ]
    assert end.contradictions == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([36, 35, 34, 33, 32, 31], "tend to order these trials alike."),
        ([31, 32, 33, 34, 35, 36], "tend to order these trials the opposite way."),
        ([33, 31, 34, 32, 36, 30], "whether loss and accuracy order these trials alike cannot be told."),
        ([33, 33, 33, 33, 33, 33], "All 6 trials have the same loss or the same accuracy"),
        ([33, 34], "2 trials: too few for an order."),
        ([33], "1 trial: too few for an order."),
    ],
)
def test_what_is_said_of_an_order(run: RunDir, rows: list[int], said: str) -> None:
    for number, count in enumerate(rows, start=1):
        write_trial(run, Told(f"{number:04d}", [1 + number / 10], scores={1: right(count)}))
    assert said in section_of(run).stages[-1].sentences[0]


def test_contradictions_are_named_with_both_margins(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.1], scores={1: right(20)}))
    write_trial(run, Told("0002", [1.3], scores={1: right(36)}))
    (*_, end) = section_of(run).stages
    assert end.sentences[1] == (
        "The loss tells 1 pair apart, and accuracy clearly contradicts it about 1 of them "
        "(by chance alone it would be about 0.0):"
    )
    (line,) = end.contradictions
    assert line.startswith("0001 has the lower loss, by 0.2000 ± 0.0")
    assert line.endswith("and 0002 the better score, by 40.0 (22.0 to 54.2) points of accuracy")


def test_of_many_contradictions_the_worst_are_named_each_trial_once(run: RunDir) -> None:
    for number in range(1, 6):
        write_trial(run, Told(f"{number:04d}", [1 + number / 10], scores={1: right(7 * number)}))
    (*_, end) = section_of(run).stages
    assert end.sentences[1].endswith(
        "contradicts it about 10 of them (by chance alone it would be about 0.2), such as:"
    )
    assert [(line[:4], line[line.index("and 0") + 4 :][:4]) for line in end.contradictions] == [
        ("0001", "0005"),
        ("0002", "0004"),
    ]


def test_the_exported_trial_has_the_best_score(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.1], scores={1: right(36)}))
    write_trial(run, Told("0002", [1.3], scores={1: right(20)}))
    assert section_of(run).sentences[0] == (
        "The trial with the lowest loss, 0001, also has the best accuracy: 90.0 % (76.9 to 96.0)."
    )
    write_trial(run, Told("0003", [1.4], scores={1: right(36)}))
    write_export(run, "0001", 1.1)
    assert section_of(run).sentences[0] == (
        "The exported trial 0001 also has the best accuracy, as has 1 other: 90.0 % (76.9 to 96.0)."
    )


def test_another_trial_has_the_best_score(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.1], scores={1: right(34)}))
    write_trial(run, Told("0002", [1.3], scores={1: right(36)}))
    write_export(run, "0001", 1.1)
    assert section_of(run).sentences[0] == (
        "Trial 0002 has the best accuracy, 90.0 % (76.9 to 96.0); the exported trial 0001 has 85.0 % (70.9 to 92.9). "
        "On these rows the two cannot be told apart."
    )
    write_trial(run, Told("0003", [1.4], scores={1: right(40)}))
    said = section_of(run).sentences[0]
    assert said.startswith(
        "Trial 0003 has the best accuracy, 100.0 % (91.2 to 100.0); the exported trial 0001 has 85.0 %"
    )
    assert "That's a clear difference, 15.0 points (" in said
    assert said.endswith(f"if it is what counts, look at trial 0003; its adapter is {run.path}/trials/0003/adapter.")


def test_a_better_trial_whose_adapter_is_gone(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.1], scores={1: right(30)}))
    write_trial(run, Told("0002", [1.3], scores={1: right(40)}, adapter=False))
    assert section_of(run).sentences[0].endswith("look at trial 0002, but its adapter wasn't kept.")


def test_the_exported_trial_was_not_scored(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.1]))
    write_trial(run, Told("0002", [1.3], scores={1: right(36)}))
    said = section_of(run).sentences[0]
    assert said.endswith("90.0 % (76.9 to 96.0). The trial with the lowest loss, 0001, was not scored.")


def test_a_score_of_other_weights_than_the_exported_is_said_to_be(run: RunDir) -> None:
    write_trial(run, Told("0001", [1.1, 1.2], scores={2: right(36)}))
    said = section_of(run).sentences[0]
    tokens = f"{2 * STEP_TOKENS:,} tokens, and its adapter with the lowest loss is of {STEP_TOKENS:,}."
    assert said.endswith(f"It was scored at {tokens}")


def test_text_scores(run: RunDir) -> None:
    for number in (1, 2, 3):
        scores = {1: [0.1 * number + 0.01 * k for k in range(20)]}
        write_trial(run, Told(f"{number:04d}", [1 + number / 10], scores=scores, measure=Measure.ROUGE_L))
    found = section_of(run)
    assert found.measure == "ROUGE-L"
    assert found.sentences[0].startswith("Trial 0003 has the best ROUGE-L, 0.3950 (0.3")
    assert found.stages[-1].contradictions[0].endswith(" of ROUGE-L")
