"""Exports a search's metrics through Ray: Prometheus scrapes Ray's agent on this node.

The agent puts `ray_` before each name. Ray sends the values to its agent a few seconds later; without an agent they
are lost, which is no error. One daemon thread per exporter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime

from ray.util.metrics import Counter, Gauge

from orchestrator.controller.events import Event
from orchestrator.monitoring.metrics import METRICS, Metric, SearchMetrics
from orchestrator.monitoring.progress import Progress
from orchestrator.monitoring.scrape_targets import ScrapeTargets
from orchestrator.state.run_dir import RunDir
from orchestrator.state.search import Search
from trials.console.troubles import TROUBLES, only_reporting

_ABOUT = "metrics"
_SECONDS_BETWEEN = 5.0
"""Ray's agent drops a gauge that was not set for 20 s, and evaluations may be minutes apart."""


class PrometheusExporter:
    """Event listener that exports metrics inside its `with` block, tagged with the name of the run folder.

    It must be called after `progress` has applied the event. An error in it is reported as a warning; the search goes
    on without metrics.
    """

    def __init__(self, progress: Progress, run: RunDir, search: Search, now: Callable[[], datetime]) -> None:
        self._name = {"search": run.path.name}
        self._told = dict.fromkeys([metric for metric in METRICS if metric.is_sum], 0.0)
        self._targets = ScrapeTargets(run.path)
        self._lock, self._is_over = threading.Lock(), threading.Event()
        with only_reporting(_ABOUT, self._give_up):
            self._search = SearchMetrics(progress, run, search, now)
            self._metrics = {metric: _declared(metric) for metric in METRICS}

    def __call__(self, event: Event) -> None:
        """Apply one event to the metrics; no effect after the block's end or an error."""
        with only_reporting(_ABOUT, self._give_up), self._lock:
            if not self._is_over.is_set():
                self._search.apply(event)

    def __enter__(self) -> PrometheusExporter:
        threading.Thread(target=self._keep_telling, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._targets.remove()

    def _keep_telling(self) -> None:
        while not self._is_over.wait(_SECONDS_BETWEEN):
            with only_reporting(_ABOUT, self._give_up):
                self._targets.refresh()
                self._tell()

    def _give_up(self, about: str, text: str) -> None:
        self._is_over.set()
        TROUBLES.record(about, f"{text}. The search goes on without them")

    def _tell(self) -> None:
        with self._lock:
            samples = self._search.current()
        for sample in samples:
            metric, tags = self._metrics[sample.metric], {**self._name, **sample.tags}
            if isinstance(metric, Gauge):
                metric.set(sample.value, tags=tags)
            elif sample.value > self._told[sample.metric]:
                metric.inc(sample.value - self._told[sample.metric], tags=tags)
                self._told[sample.metric] = sample.value


def _declared(metric: Metric) -> Counter | Gauge:
    kind = Counter if metric.is_sum else Gauge
    return kind(metric.name, description=metric.description, tag_keys=metric.tags)
