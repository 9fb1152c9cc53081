"""When each alert fires, and when it must not: series in promtool's notation, one value a minute."""

from dataclasses import dataclass

from tests.monitoring.rules import Fields

JOB = {"job_namespace": "team", "job_name": "cats"}
OPERATOR = {"namespace": "tailorpo-system"}


@dataclass(frozen=True)
class Case:
    """series: values by name with labels. at: when the alerts are looked at. fires: labels and description of each."""

    alert: str
    what: str
    series: dict[str, str]
    at: str
    fires: tuple[tuple[Fields, str], ...] = ()


def of_job(metric: str, **labels: str) -> str:
    return _with(metric, JOB | labels)


def of_operator(metric: str, **labels: str) -> str:
    return _with(f"tailorpo_operator_{metric}", OPERATOR | labels)


def _with(metric: str, labels: dict[str, str]) -> str:
    matchers = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{metric}{{{matchers}}}"


def fires(description: str, **labels: str) -> tuple[tuple[Fields, str], ...]:
    return ((JOB | labels, description),)


def alarm(alert: str, name: str, description: str, **labels: str) -> tuple[Case, ...]:
    series = of_job("tailorpo_alarm", alarm=name)
    return (
        Case(alert, "raised", {series: "0x5 1x30"}, "10m", fires(description, **labels)),
        Case(alert, "not raised", {series: "0x40"}, "30m"),
        Case(alert, "the run has ended", {series: "0x5 1x10 stale"}, "20m"),
        Case(
            alert,
            "the next attempt shows it again",
            {
                of_job("tailorpo_alarm", alarm=name, pod="a"): "0x5 1x10 stale",
                of_job("tailorpo_alarm", alarm=name, pod="b"): "_x20 1x30",
            },
            "30m",
            fires(description, **labels),
        ),
    )


JOBS = (
    Case(
        "TailorPOJobFailed",
        "just now",
        {
            of_job("tailorpo_job_failed_reason", reason="OOMKilled"): "1x60",
            of_job("tailorpo_job_completion_timestamp_seconds"): "0x60",
        },
        "10m",
        fires("team/cats failed 10m 0s ago: OOMKilled.", reason="OOMKilled"),
    ),
    Case(
        "TailorPOJobFailed",
        "reported by another replica since",
        {
            of_job("tailorpo_job_failed_reason", reason="OOMKilled", pod="a"): "1x5 stale",
            of_job("tailorpo_job_completion_timestamp_seconds", pod="a"): "0x5 stale",
            of_job("tailorpo_job_failed_reason", reason="OOMKilled", pod="b"): "_x4 1x60",
            of_job("tailorpo_job_completion_timestamp_seconds", pod="b"): "_x4 0x60",
        },
        "10m",
        fires("team/cats failed 10m 0s ago: OOMKilled.", reason="OOMKilled"),
    ),
    Case(
        "TailorPOJobFailed",
        "more than a day ago",
        {
            of_job("tailorpo_job_failed_reason", reason="OOMKilled"): "1x1500",
            of_job("tailorpo_job_completion_timestamp_seconds"): "0x1500",
        },
        "1500m",
    ),
    Case("TailorPOJobFailed", "succeeded", {of_job("tailorpo_job_completion_timestamp_seconds"): "0x60"}, "10m"),
    Case(
        "TailorPOJobPending",
        "for more than an hour",
        {of_job("tailorpo_job_pending_seconds"): "0+60x100"},
        "70m",
        fires("team/cats has waited 1h 10m 0s for its pods."),
    ),
    Case("TailorPOJobPending", "not long enough", {of_job("tailorpo_job_pending_seconds"): "0+60x100"}, "59m"),
    Case("TailorPOJobPending", "runs now", {of_job("tailorpo_job_pending_seconds"): "0+60x63 stale"}, "70m"),
    Case(
        "TailorPOJobRestarting",
        "three times in half an hour",
        {of_job("tailorpo_job_restarts"): "0x10 1x5 2x5 3x30"},
        "30m",
        fires("team/cats was restarted 3 times within the last hour."),
    ),
    Case(
        "TailorPOJobRestarting",
        "reported by another replica since",
        {
            of_job("tailorpo_job_restarts", pod="a"): "0x10 stale",
            of_job("tailorpo_job_restarts", pod="b"): "_x12 3x30",
        },
        "30m",
        fires("team/cats was restarted 3 times within the last hour."),
    ),
    Case("TailorPOJobRestarting", "long ago", {of_job("tailorpo_job_restarts"): "0x10 3x100"}, "100m"),
    Case("TailorPOJobRestarting", "before the operator was watched", {of_job("tailorpo_job_restarts"): "7x90"}, "30m"),
)

TRAINING = (
    Case(
        "TailorPOStalled",
        "for an hour",
        {of_job("tailorpo_step"): "0+1x30 30x200", of_job("tailorpo_iterations"): "100x300"},
        "95m",
        fires("team/cats stands still after 30 iterations."),
    ),
    Case(
        "TailorPOStalled",
        "across a restart",
        {
            of_job("tailorpo_step", pod="a"): "0+1x30 30x30 stale",
            of_job("tailorpo_iterations", pod="a"): "100x60 stale",
            of_job("tailorpo_step", pod="b"): "_x66 30x100",
            of_job("tailorpo_iterations", pod="b"): "_x66 100x100",
        },
        "95m",
        fires("team/cats stands still after 30 iterations."),
    ),
    Case(
        "TailorPOStalled",
        "for less than an hour",
        {of_job("tailorpo_step"): "0+1x30 30x200", of_job("tailorpo_iterations"): "100x300"},
        "85m",
    ),
    Case(
        "TailorPOStalled",
        "an iteration takes twenty minutes",
        {of_job("tailorpo_step"): "0x20 1x20 2x20 3x20 4x20 5x20", of_job("tailorpo_iterations"): "100x300"},
        "120m",
    ),
    Case(
        "TailorPOStalled",
        "done",
        {of_job("tailorpo_step"): "0+1x30 30x200", of_job("tailorpo_iterations"): "30x300"},
        "120m",
    ),
    Case(
        "TailorPOStalled",
        "its pods are gone",
        {of_job("tailorpo_step"): "0+1x30 30x10 stale", of_job("tailorpo_iterations"): "100x40 stale"},
        "120m",
    ),
    Case(
        "TailorPOStalled",
        "goes on after missed scrapes",
        {of_job("tailorpo_step"): "0+1x30 _x9 40+1x100", of_job("tailorpo_iterations"): "200x30 _x9 200x100"},
        "100m",
    ),
    *alarm(
        "TailorPOGapCollapsed",
        "gap-at-zero",
        "team/cats: the reward made no difference between the pictures of several iterations.",
    ),
    *alarm(
        "TailorPOOverOptimisation",
        "over-optimisation",
        "team/cats raises its reward at the cost of diversity, or of a reward that is only measured.",
    ),
    *alarm("TailorPONotFinite", "not-finite", "team/cats has produced NaN or an infinity."),
    Case(
        "TailorPONotFinite",
        "the job failed before it was scraped",
        {
            of_job("tailorpo_job_failed_reason", reason="NotFinite"): "1x60",
            of_job("tailorpo_job_completion_timestamp_seconds"): "0x60",
        },
        "10m",
        fires("team/cats has produced NaN or an infinity."),
    ),
    Case(
        "TailorPONotFinite",
        "failed for another reason",
        {
            of_job("tailorpo_job_failed_reason", reason="OOMKilled"): "1x60",
            of_job("tailorpo_job_completion_timestamp_seconds"): "0x60",
        },
        "10m",
    ),
    *alarm(
        "TailorPOAlarm",
        "logit-saturated",
        "team/cats has raised the alarm logit-saturated.",
        alarm="logit-saturated",
    ),
    Case(
        "TailorPOGradientNorm",
        "twenty times as large",
        {of_job("tailorpo_gradient_norm"): "1x400 20x30"},
        "415m",
        fires("The gradient of team/cats is 20 times as large as its median of six hours."),
    ),
    Case("TailorPOGradientNorm", "once", {of_job("tailorpo_gradient_norm"): "1x400 20x5 1x30"}, "415m"),
    Case(
        "TailorPOGradientNorm",
        "where the usual was another attempt's",
        {
            of_job("tailorpo_gradient_norm", pod="a"): "1x300 stale",
            of_job("tailorpo_gradient_norm", pod="b"): "_x302 2x100",
        },
        "350m",
    ),
    Case(
        "TailorPOSlow",
        "since twenty minutes",
        {of_job("tailorpo_images_per_second"): "10x400 4x40"},
        "421m",
        fires("team/cats draws pictures at 40% of its median speed of six hours."),
    ),
    Case("TailorPOSlow", "for a moment", {of_job("tailorpo_images_per_second"): "10x400 4x10 10x40"}, "421m"),
    Case("TailorPOSlow", "always", {of_job("tailorpo_images_per_second"): "4x500"}, "421m"),
    Case(
        "TailorPOSlowReward",
        "two thirds of the time",
        {
            of_job("tailorpo_phase_seconds_sum", phase="score"): "0+40x100",
            of_job("tailorpo_phase_seconds_sum", phase="rollout"): "0+20x100",
        },
        "60m",
        fires("team/cats waits for rewards during 66.67% of its time."),
    ),
    Case(
        "TailorPOSlowReward",
        "a third of the time, with a restart",
        {
            of_job("tailorpo_phase_seconds_sum", phase="score"): "0+20x30 0+20x100",
            of_job("tailorpo_phase_seconds_sum", phase="rollout"): "0+40x30 0+40x100",
        },
        "60m",
    ),
    Case(
        "TailorPOCheckpointFailing",
        "each minute",
        {of_job("tailorpo_checkpoint_failures_total"): "0+1x60"},
        "60m",
        fires("team/cats has tried 60 times in vain to write a checkpoint within the last hour."),
    ),
    Case("TailorPOCheckpointFailing", "once", {of_job("tailorpo_checkpoint_failures_total"): "0x10 1x90"}, "60m"),
    Case(
        "TailorPOCheckpointFailing",
        "once in each of two attempts",
        {
            of_job("tailorpo_checkpoint_failures_total", pod="a"): "0x10 1x20 stale",
            of_job("tailorpo_checkpoint_failures_total", pod="b"): "_x35 0x5 1x20",
        },
        "60m",
    ),
    Case(
        "TailorPOCheckpointOld",
        "two hours after the last",
        {
            of_job("tailorpo_checkpoint_last_success_timestamp_seconds"): "_x10 600x200",
            of_job("tailorpo_attempt_start_timestamp_seconds"): "0x200",
        },
        "140m",
        fires("team/cats last wrote a checkpoint, or began, 2h 10m 0s ago."),
    ),
    Case(
        "TailorPOCheckpointOld",
        "none since the attempt began",
        {
            of_job("tailorpo_checkpoint_last_success_timestamp_seconds", pod="a"): "0x10 stale",
            of_job("tailorpo_attempt_start_timestamp_seconds", pod="a"): "0x10 stale",
            of_job("tailorpo_attempt_start_timestamp_seconds", pod="b"): "_x10 600x200",
        },
        "140m",
        fires("team/cats last wrote a checkpoint, or began, 2h 10m 0s ago."),
    ),
    Case(
        "TailorPOCheckpointOld",
        "one was written meanwhile",
        {
            of_job("tailorpo_checkpoint_last_success_timestamp_seconds"): "0x100 6000x100",
            of_job("tailorpo_attempt_start_timestamp_seconds"): "0x200",
        },
        "140m",
    ),
    Case(
        "TailorPOCheckpointOld",
        "the run has ended",
        {of_job("tailorpo_attempt_start_timestamp_seconds"): "0x100 stale"},
        "140m",
    ),
    Case(
        "TailorPOCheckpointSlow",
        "nine minutes",
        {
            of_job("tailorpo_checkpoint_seconds_bucket", le="300"): "0x100",
            of_job("tailorpo_checkpoint_seconds_bucket", le="600"): "0+1x100",
            of_job("tailorpo_checkpoint_seconds_bucket", le="+Inf"): "0+1x100",
        },
        "70m",
        fires("One checkpoint in ten of team/cats takes at least 9m 30s."),
    ),
    Case(
        "TailorPOCheckpointSlow",
        "a minute",
        {
            of_job("tailorpo_checkpoint_seconds_bucket", le="60"): "0+1x100",
            of_job("tailorpo_checkpoint_seconds_bucket", le="+Inf"): "0+1x100",
        },
        "70m",
    ),
)

GONE = "Pods that run go on; nothing is started, restarted or ended."
THE_OPERATOR = (
    Case(
        "TailorPOOperatorDown",
        "it ended",
        {of_operator("leading", pod="a"): "1x30 stale"},
        "40m",
        ((OPERATOR, f"Prometheus finds no operator in namespace tailorpo-system. {GONE}"),),
    ),
    Case("TailorPOOperatorDown", "it was never there", {}, "10m", (({}, f"Prometheus finds no operator. {GONE}"),)),
    Case(
        "TailorPOOperatorDown",
        "that of one of two clusters",
        {of_operator("leading", cluster="one"): "1x30 stale", of_operator("leading", cluster="two"): "1x60"},
        "40m",
        (
            (
                OPERATOR | {"cluster": "one"},
                f"Prometheus finds no operator in namespace tailorpo-system. {GONE}",
            ),
        ),
    ),
    Case(
        "TailorPOOperatorDown",
        "another pod has taken over",
        {of_operator("leading", pod="a"): "1x30 stale", of_operator("leading", pod="b"): "_x33 1x60"},
        "60m",
    ),
    Case("TailorPOOperatorDown", "four scrapes were missed", {of_operator("leading"): "1x30 _x4 1x60"}, "36m"),
    Case(
        "TailorPOOperatorNotLeading",
        "two replicas stand by",
        {of_operator("leading", pod="a"): "0x30", of_operator("leading", pod="b"): "0x30"},
        "10m",
        ((OPERATOR, "Replicas of the operator run in namespace tailorpo-system, and none of them leads."),),
    ),
    Case(
        "TailorPOOperatorNotLeading",
        "the leader changes",
        {of_operator("leading", pod="a"): "1x5 0x30", of_operator("leading", pod="b"): "0x8 1x30"},
        "11m",
    ),
    Case(
        "TailorPOOperatorNotReady",
        "one of two replicas",
        {of_operator("ready", pod="a"): "1x30", of_operator("ready", pod="b"): "0x30"},
        "15m",
        ((OPERATOR | {"pod": "b"}, "b does not know all jobs and pods, or does not reach the API server."),),
    ),
    Case("TailorPOOperatorNotReady", "it starts", {of_operator("ready", pod="a"): "0x5 1x30"}, "20m"),
    Case(
        "TailorPOOperatorReconcileErrors",
        "three of ten",
        {of_operator("reconcile_errors_total"): "0+3x60", of_operator("reconcile_seconds_count"): "0+10x60"},
        "40m",
        ((OPERATOR, "30% of the operator's reconciliations fail."),),
    ),
    Case(
        "TailorPOOperatorReconcileErrors",
        "one of twenty, with a restart",
        {
            of_operator("reconcile_errors_total"): "0+1x20 0+1x60",
            of_operator("reconcile_seconds_count"): "0+20x20 0+20x60",
        },
        "40m",
    ),
    Case(
        "TailorPOOperatorQueueStuck",
        "none is taken",
        {of_operator("queue_length"): "5x60", of_operator("reconcile_seconds_count"): "100x60"},
        "20m",
        ((OPERATOR, "5 jobs have waited for ten minutes at least, and the operator has reconciled none."),),
    ),
    Case(
        "TailorPOOperatorQueueStuck",
        "it is busy",
        {of_operator("queue_length"): "5x60", of_operator("reconcile_seconds_count"): "0+9x60"},
        "20m",
    ),
    Case(
        "TailorPOOperatorQueueStuck",
        "it has nothing to do",
        {of_operator("queue_length"): "0x60", of_operator("reconcile_seconds_count"): "100x60"},
        "20m",
    ),
    Case(
        "TailorPOOperatorJobsNotUnderstood",
        "the operator is older than the definition",
        {of_operator("jobs_not_understood"): "3x60"},
        "20m",
        (
            (
                OPERATOR,
                "3 jobs have a field or a value that this version of the operator does not know, and begin no attempt.",
            ),
        ),
    ),
    Case(
        "TailorPOOperatorJobsNotUnderstood",
        "for a moment, while the definition is upgraded",
        {of_operator("jobs_not_understood"): "0x10 3x2 0x60"},
        "20m",
    ),
    Case(
        "TailorPOOperatorJobMetricsOmitted",
        "some",
        {of_operator("job_metrics_omitted"): "12x60"},
        "20m",
        (
            (
                OPERATOR,
                "12 jobs have no metrics, because there are more than the operator's limit: alerts do not see them.",
            ),
        ),
    ),
    Case("TailorPOOperatorJobMetricsOmitted", "none", {of_operator("job_metrics_omitted"): "0x60"}, "20m"),
)

CASES = (*JOBS, *TRAINING, *THE_OPERATOR)
