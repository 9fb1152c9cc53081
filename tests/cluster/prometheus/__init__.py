"""A real Prometheus on loopback, for tests of metrics, dashboards and alerts."""

from tests.cluster.prometheus.server import PROMETHEUS, Prometheus, Target, prometheus, promtool

__all__ = ["PROMETHEUS", "Prometheus", "Target", "prometheus", "promtool"]
