"""A search's metrics through a real Ray, as Prometheus gets them, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.controller.controller import SearchController
from orchestrator.controller.events import in_turn
from orchestrator.execution.tune_run import ray_session
from orchestrator.monitoring.metrics import METRICS
from orchestrator.monitoring.progress import Progress
from orchestrator.monitoring.prometheus import PrometheusExporter
from orchestrator.monitoring.scrape_targets import ScrapeTargets, folder
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from tests.support.cli import ROOT
from tests.support.fake_search import Clock, begin, evaluate, run_base

pytestmark = pytest.mark.cluster

DASHBOARD = ROOT / "docs/grafana/search.json"
EXPORTED = {f"ray_{metric.name}{'_total' if metric.is_sum else ''}": set(metric.tags) for metric in METRICS}
# Ray's agent is told every ten seconds, and forgets after twenty what it isn't told again.
REPORTS_SECONDS, FORGETS_SECONDS = 120, 35


@pytest.fixture
def controller(run: RunDir, search: Search) -> Iterator[SearchController]:
    """Of a search whose metrics Ray is told."""
    progress, clock = Progress(tuple(search.recipe.space)), Clock()
    with ray_session(dashboard=False), PrometheusExporter(progress, run, search, clock) as metrics:
        yield SearchController(run, search, 2, in_turn(progress.apply, metrics), now=clock)


def scraped() -> dict[tuple[str, str], float]:
    """Metrics of ours, by name and trial, of this node's agent."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples if sample.name.startswith("ray_qlora_")]
    assert {sample.labels["search"] for sample in samples} <= {"run"}
    return {(sample.name, sample.labels.get("trial", "")): sample.value for sample in samples}


def test_prometheus_finds_a_trial_s_loss_and_goes_on_finding_it(run: RunDir, controller: SearchController) -> None:
    run_base(run, controller)
    trial = begin(controller)
    evaluate(run, controller, trial, 2.5, 300)
    ends = time.monotonic() + REPORTS_SECONDS
    wanted = ("ray_qlora_trial_eval_loss", trial.trial_id)
    while wanted not in scraped() and time.monotonic() < ends:
        time.sleep(1)
    found = scraped()
    assert found[wanted] == 2.5
    assert found["ray_qlora_search_base_eval_loss", ""] == 3.0
    assert found["ray_qlora_search_trained_tokens_total", ""] == 400
    time.sleep(FORGETS_SECONDS)
    assert scraped()[wanted] == 2.5


def test_prometheus_finds_the_list_of_addresses_where_it_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "ray").mkdir()
    one, other = ScrapeTargets(tmp_path / "a" / "run"), ScrapeTargets(tmp_path / "b" / "run")
    one.refresh()  # there's no dashboard
    (tmp_path / "ray" / "prom_metrics_service_discovery.json").write_text("[1]")
    one.refresh()
    other.refresh()
    assert [path.read_text() for path in folder().glob("*.json")] == ["[1]", "[1]"]
    one.remove()
    other.remove()
    assert not list(folder().iterdir())


def test_metrics_that_fail_are_one_warning_and_the_search_goes_on(
    run: RunDir, search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    progress, clock = Progress(tuple(search.recipe.space)), Clock()
    with PrometheusExporter(progress, run, search, clock) as metrics:
        # Nobody told the board, so the metrics know nothing of a trial that is evaluated.
        controller = SearchController(run, search, 2, metrics, now=clock)
        run_base(run, controller)
        evaluate(run, controller, begin(controller), 2.5, 300)
    (warning,) = [message for message in caplog.messages if message.startswith("metrics: ")]
    assert warning.endswith("The search goes on without them")


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    asked = [variable["query"] for variable in variables]
    return asked + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_dashboard_asks_for_metrics_that_there_are_by_tags_that_they_have() -> None:
    assert len(queries()) > len(METRICS)
    for query in queries():
        (name,) = re.findall(r"ray_\w+", query)
        assert name in EXPORTED, query
        labels = set(re.findall(r"(\w+)(?:=|!~)\"", query)) | set(re.findall(r"by \((\w+)\)", query))
        assert labels <= EXPORTED[name], query


def test_the_dashboard_shows_every_metric() -> None:
    asked = " ".join(queries())
    assert [name for name in EXPORTED if not re.search(rf"{name}\b", asked)] == []


def test_panels_of_the_dashboard_have_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
