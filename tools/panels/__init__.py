"""Draws dashboards of Grafana from a Prometheus, without a Grafana: `python -m tools.panels --help`."""
