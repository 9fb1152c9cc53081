"""What the expressions of the dashboards have in common: which series are selected, and how they are grouped."""

from dataclasses import dataclass

JOB = "cluster, job_namespace, job_name"
"""What identifies a job. Labels of the target, such as `pod`, change with each attempt, so they are aggregated away."""

NAME = "{{job_namespace}}/{{job_name}}"
"""The legend of a job: two namespaces may have jobs of one name."""

IN_CLUSTER = 'cluster=~"$cluster"'
IN_NAMESPACE = f'{IN_CLUSTER},job_namespace=~"$namespace"'
OF_JOB = f'{IN_NAMESPACE},job_name=~"$job"'
OF_OPERATOR = f'{IN_CLUSTER},namespace=~"$namespace"'
"""The operator's own metrics have no label of a job; `namespace` is that of its pod."""


@dataclass(frozen=True)
class Query:
    """One query of a panel. legend: Grafana's template. instant: only the last value. table: a row for each series."""

    expression: str
    legend: str = NAME
    instant: bool = False
    table: bool = False


def each(metric: str, by: str = "", labels: str = "", of: str = OF_JOB) -> str:
    """A gauge, one series a job (and for each value of the labels `by`), whichever pod reports it."""
    grouping = f"{JOB}, {by}" if by else JOB
    return f"max by ({grouping}) ({selected(metric, labels, of)})"


def rate(metric: str, by: str = "", function: str = "rate", window: str = "$__rate_interval") -> str:
    """The rate of a counter, one series a job (and for each value of the labels `by`)."""
    grouping = f"{JOB}, {by}" if by else JOB
    return f"sum by ({grouping}) ({function}({selected(metric)}[{window}]))"


def over(function: str, metric: str, window: str, by: str = "", labels: str = "", of: str = OF_JOB) -> str:
    """A function over time of a gauge, one series a job."""
    grouping = f"{JOB}, {by}" if by else JOB
    return f"max by ({grouping}) ({function}({selected(metric, labels, of)}[{window}]))"


def selected(metric: str, labels: str = "", of: str = OF_JOB) -> str:
    """The series of a metric that the variables select."""
    return f"{metric}{{{of}{',' if labels else ''}{labels}}}"


def ends_by_reason(ends: str) -> str:
    """Ends of attempts in each interval, of the reasons that the shown time has: all known ones are counted from 0."""
    shown = f"sum by (reason) (increase({ends}[$__range])) > 0"
    return f"sum by (reason) (increase({ends}[$__rate_interval])) and on (reason) ({shown})"
