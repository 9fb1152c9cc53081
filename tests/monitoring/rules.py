"""The rules of the chart, as tests read them."""

from tools.rule_tables import FILES, Fields, alerts, rules

__all__ = ["FILES", "Fields", "alerts", "rules"]
