"""A registry in which a metric that fails costs only itself: the functions behind gauges run at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class IsolatingRegistry(CollectorRegistry):
    """Leaves a metric out of a scrape when collecting it raises; `on_failure` is called with the exception."""

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        super().__init__()
        self._on_failure = on_failure

    def register(self, collector: Collector) -> None:
        """Register a metric."""
        super().register(_Isolated(collector, self._on_failure))


class _Isolated(Collector):
    def __init__(self, collector: Collector, on_failure: Callable[[Exception], None]) -> None:
        self._collector = collector
        self._on_failure = on_failure

    def describe(self) -> Iterable[Metric]:
        """What the metric says of itself; collectors of the library may say nothing."""
        describe: Callable[[], Iterable[Metric]] = getattr(self._collector, "describe", list)
        return describe()

    def collect(self) -> Iterable[Metric]:
        """The samples of the metric."""
        try:
            return list(self._collector.collect())
        except Exception as exc:
            self._on_failure(exc)
            return []
