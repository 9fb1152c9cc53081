"""The dashboard "Operator": whether the operator leads, keeps up and reaches the API server."""

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import units

from tools.dashboards import variables
from tools.dashboards.panels import BLUE, GREEN, RED, YELLOW, File, Row, Steps, assembled, cells, lines, states, value
from tools.dashboards.queries import IN_CLUSTER, OF_OPERATOR, Query, ends_by_reason, selected

UID = "tailorpo-operator"
REPLICA = "cluster, namespace, pod, instance"
"""What identifies a replica of the operator: labels of the target."""
LEGEND = "{{pod}} {{instance}}"


def dashboard() -> File:
    return assembled(
        UID,
        "TailorPO / Operator",
        "Is one replica leading, does it keep up with the jobs, and does the API server answer it?",
        [variables.datasource(), variables.cluster("tailorpo_operator_leading"), _namespace()],
        [_now(), _reconciling(), _requests(), _process()],
    )


def _namespace() -> build.QueryVariable:
    what = "Namespaces in which an operator runs."
    return variables.labels("namespace", "namespace", "tailorpo_operator_leading", what, IN_CLUSTER)


def of(metric: str, labels: str = "") -> str:
    return selected(metric, labels, OF_OPERATOR)


def _rate(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({of(metric, labels)}[$__rate_interval]))"


def _now() -> Row:
    leading = of("tailorpo_operator_leading")
    return Row("Is it there?").line(
        7,
        (
            4,
            value(
                "Leaders",
                "Replicas that act. Exactly one; none for long means that no job is looked after.",
                [Query(f"sum({leading})", "leaders")],
                units.NoUnit,
                Steps(RED, [(1, GREEN), (2, RED)]),
                none="0",
            ),
        ),
        (
            4,
            value(
                "Ready replicas",
                "Replicas that know all jobs and pods and reach the API server.",
                [Query(f"sum({of('tailorpo_operator_ready')})", "ready")],
                units.NoUnit,
                Steps(RED, [(1, GREEN)]),
                none="0",
            ),
        ),
        (
            8,
            states(
                "Leader",
                "Which replica leads. A change of leader interrupts no job.",
                [Query(f"max by ({REPLICA}) ({leading})", LEGEND)],
                {"0": ("stands by", BLUE), "1": ("leads", GREEN)},
            ),
        ),
        (
            8,
            lines(
                "Jobs by phase",
                "Jobs that the leader knows, by phase.",
                [Query(f"sum by (phase) ({of('tailorpo_operator_jobs')})", "{{phase}}")],
                units.NoUnit,
                stacked=True,
                low=0,
            ),
        ),
    )


def _reconciling() -> Row:
    bucket = "tailorpo_operator_reconcile_seconds_bucket"

    def quantile(share: float) -> str:
        return f"histogram_quantile({share}, {_rate(bucket, 'le')})"

    return (
        Row("Does it keep up?")
        .line(
            8,
            (
                8,
                lines(
                    "Duration of a reconciliation",
                    "From the decision about one job to its last request: median, 90th and 99th percentile.",
                    [Query(quantile(share), f"{share:.0%}") for share in (0.5, 0.9, 0.99)],
                    units.Seconds,
                    low=0,
                ),
            ),
            (
                8,
                lines(
                    "Reconciliations",
                    "How many jobs are looked at per second, and how many of these failed and are repeated.",
                    [
                        Query(_rate("tailorpo_operator_reconcile_seconds_count", "cluster"), "done"),
                        Query(_rate("tailorpo_operator_reconcile_errors_total", "cluster"), "failed"),
                    ],
                    units.OpsPerSecond,
                    low=0,
                ),
            ),
            (
                8,
                lines(
                    "Queue",
                    "Jobs that wait to be looked at, the most in each interval. It should come back to 0.",
                    [
                        Query(
                            f"max by ({REPLICA}) (max_over_time({of('tailorpo_operator_queue_length')}"
                            "[$__rate_interval]))",
                            LEGEND,
                        )
                    ],
                    units.NoUnit,
                    low=0,
                ),
            ),
        )
        .line(
            8,
            (
                12,
                cells(
                    "Durations of reconciliations",
                    "How many reconciliations per second took at most the time of each row, but longer than the row "
                    "below.",
                    [Query(_rate(bucket, "le"), "{{le}}")],
                    units.OpsPerSecond,
                    "seconds",
                    buckets=True,
                ),
            ),
            (
                12,
                lines(
                    "Ends of attempts",
                    "Attempts that ended, by reason, in each interval.",
                    [Query(ends_by_reason(of("tailorpo_operator_attempts_total")), "{{reason}}")],
                    units.Short,
                    low=0,
                    none="No attempt has ended",
                ),
            ),
        )
    )


def _requests() -> Row:
    requests = "tailorpo_operator_api_requests_total"
    failed = _rate(requests, "cluster", 'code!~"2..|404|409"')
    return Row("Does the API server answer?").line(
        8,
        (
            8,
            lines(
                "Requests",
                "To the API server, by verb; watches are not counted.",
                [Query(_rate(requests, "verb"), "{{verb}}")],
                units.RequestsPerSecond,
                stacked=True,
                low=0,
            ),
        ),
        (
            8,
            lines(
                "Requests that failed",
                "By code: 429 asks to slow down, 5xx and 0 (no answer) mean that the API server has a problem, 403 "
                "that a right is missing. 404 and 409 are part of ordinary work and not shown.",
                [Query(_rate(requests, "code", 'code!~"2..|404|409"'), "{{code}}")],
                units.RequestsPerSecond,
                low=0,
                none="No request failed",
            ),
        ),
        (
            4,
            lines(
                "Share that failed",
                "Of all requests.",
                [Query(f"{failed} / {_rate(requests, 'cluster')}", "failed")],
                units.PercentUnit,
                low=0,
                high=1,
                none="No request failed",
            ),
        ),
        (
            4,
            lines(
                "Age of what it knows",
                "Time since each kind of object was last heard of by its watch. A growing line is a watch that died; "
                "the operator is then not ready.",
                [Query(f"max by (kind) ({of('tailorpo_operator_watch_age_seconds')})", "{{kind}}")],
                units.Seconds,
                low=0,
            ),
        ),
    )


def _process() -> Row:
    cores = f"rate(process_cpu_seconds_total{{{IN_CLUSTER}}}[$__rate_interval])"
    ours = f"and on (cluster, instance) {of('tailorpo_operator_leading')}"
    return Row("What does it use?").line(
        7,
        (
            8,
            lines(
                "Memory",
                "Resident memory of each replica.",
                [Query(f"max by ({REPLICA}) (process_resident_memory_bytes{{{IN_CLUSTER}}} {ours})", LEGEND)],
                units.BytesIEC,
                low=0,
            ),
        ),
        (
            8,
            lines(
                "CPU",
                "Cores that each replica uses.",
                [Query(f"sum by ({REPLICA}) ({cores} {ours})", LEGEND)],
                units.Short,
                low=0,
            ),
        ),
        (
            8,
            value(
                "Jobs without metrics",
                "Jobs that the operator leaves out of its metrics because there are more than its limit. Alerts and "
                "the dashboard of jobs do not see them.",
                [Query(f"max({of('tailorpo_operator_job_metrics_omitted')})", "jobs")],
                units.NoUnit,
                Steps(GREEN, [(1, YELLOW)]),
                none="0",
            ),
        ),
    )
