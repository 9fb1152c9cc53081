"""The dashboard "Jobs": those of a namespace or of a team, from what the operator reports of their statuses."""

from grafana_foundation_sdk.models import units

from tools.dashboards import training, variables
from tools.dashboards.panels import (
    GREEN,
    RED,
    TEXT,
    YELLOW,
    File,
    Panel,
    Row,
    Steps,
    assembled,
    lines,
    rows,
    value,
)
from tools.dashboards.queries import IN_CLUSTER, IN_NAMESPACE, JOB, NAME, Query, each, ends_by_reason, selected

UID = "tailorpo-jobs"


def dashboard() -> File:
    return assembled(
        UID,
        "TailorPO / Jobs",
        "The jobs of a namespace or a team: what runs, what waits, what failed and why, and what it costs. From the "
        "operator, so that it also shows jobs whose pods are gone.",
        [
            variables.datasource(),
            variables.cluster("tailorpo_job_info"),
            variables.namespace("tailorpo_job_info"),
        ],
        [_now(), _waiting(), _failing(), _cost(), _table()],
        hours=24,
    )


def status(phase: str = "") -> str:
    """1 for each job in its phase, 0 in the others; once a job, even while the leader changes and two report it."""
    return each("tailorpo_job_status", "phase", f'phase="{phase}"' if phase else "", IN_NAMESPACE)


def _counted(title: str, phase: str, what: str, steps: Steps) -> Panel:
    return value(title, what, [Query(f"sum({status(phase)})", title)], units.NoUnit, steps, none="0")


def _now() -> Row:
    return (
        Row("Now")
        .line(
            4,
            (5, _counted("Running", "Running", "Jobs whose pods all run.", Steps(GREEN))),
            (5, _counted("Waiting", "Pending", "Jobs that wait for their pods.", Steps(TEXT, [(1, YELLOW)]))),
            (
                5,
                _counted(
                    "Between attempts",
                    "Restarting",
                    "Jobs whose last attempt ended before the run was done, and that wait for the next one.",
                    Steps(TEXT, [(1, YELLOW)]),
                ),
            ),
            (4, _counted("Succeeded", "Succeeded", "Jobs that are done and still exist.", Steps(TEXT))),
            (5, _counted("Failed", "Failed", "Jobs that failed and still exist.", Steps(TEXT, [(1, RED)]))),
        )
        .line(
            8,
            (
                24,
                lines(
                    "Jobs by phase",
                    "How many jobs were in each phase. Jobs that are deleted leave the picture.",
                    [Query(f"sum by (phase) ({status()})", "{{phase}}")],
                    units.NoUnit,
                    stacked=True,
                    low=0,
                ),
            ),
        )
    )


def _waiting() -> Row:
    bucket = selected("tailorpo_job_pending_duration_seconds_bucket", of=IN_NAMESPACE)
    running = selected("tailorpo_job_running_duration_seconds_bucket", of=IN_NAMESPACE)
    return Row("How long do jobs wait?").line(
        8,
        (
            12,
            lines(
                "Waiting now",
                "How long each job has waited for its pods. An alert fires after an hour (dashed); kubectl describe "
                "tpj says what it waits for.",
                [Query(each("tailorpo_job_pending_seconds", of=IN_NAMESPACE))],
                units.Seconds,
                low=0,
                steps=Steps(GREEN, [(3600, RED)]),
                none="No job waits",
            ),
        ),
        (
            6,
            lines(
                "Wait before running",
                "How long attempts had waited when their pods began to run: half of them less than the median, nine of "
                "ten less than the 90th percentile. Over the last six hours at each point.",
                [Query(_quantile(0.5, bucket), "median"), Query(_quantile(0.9, bucket), "90th percentile")],
                units.Seconds,
                low=0,
                none="No attempt has begun",
            ),
        ),
        (
            6,
            lines(
                "Duration of attempts",
                "How long attempts ran, those that ended within the six hours before each point.",
                [Query(_quantile(0.5, running), "median"), Query(_quantile(0.9, running), "90th percentile")],
                units.Seconds,
                low=0,
                none="No attempt has ended",
            ),
        ),
    )


def _quantile(share: float, buckets: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (increase({buckets}[6h])))"


def _failing() -> Row:
    lost = selected("tailorpo_job_restart_lost_steps_sum", of=IN_NAMESPACE)
    ends = f'tailorpo_operator_attempts_total{{{IN_CLUSTER},reason!~"Completed|Extended"}}'
    restarts = each("tailorpo_job_restarts", of=IN_NAMESPACE)
    return Row("What fails?").line(
        8,
        (
            8,
            lines(
                "Failed jobs by reason",
                "Jobs that failed and still exist, by the reason of their last attempt.",
                [
                    Query(
                        f"sum by (reason) ({each('tailorpo_job_failed_reason', 'reason', of=IN_NAMESPACE)})",
                        "{{reason}}",
                    )
                ],
                units.NoUnit,
                low=0,
                none="No job has failed",
            ),
        ),
        (
            8,
            lines(
                "Ends of attempts by reason",
                "Attempts that ended before the run was done, in each interval and in the whole cluster: the operator "
                "counts them without a namespace.",
                [Query(ends_by_reason(ends), "{{reason}}")],
                units.Short,
                low=0,
                none="No attempt ended early",
            ),
        ),
        (
            4,
            lines(
                "Restarts",
                "Attempts after the first, of each job.",
                [Query(f"{restarts} > 0")],
                units.NoUnit,
                low=0,
                none="No job was restarted",
            ),
        ),
        (
            4,
            lines(
                "Iterations lost",
                "Iterations that had to be repeated because an attempt ended after its newest checkpoint, in each "
                "interval.",
                [Query(f"sum(increase({lost}[$__rate_interval]))", "iterations lost")],
                units.Short,
                low=0,
                none="None",
            ),
        ),
    )


def _cost() -> Row:
    seconds = selected("tailorpo_job_gpu_seconds_total", of=IN_NAMESPACE)
    return Row("What does it cost?").line(
        8,
        (
            12,
            lines(
                "Accelerators in use",
                "GPU seconds per second, by namespace: how many accelerators the pods of running attempts hold, "
                "busy or not.",
                [Query(f"sum by (job_namespace) (rate({seconds}[$__rate_interval]))", "{{job_namespace}}")],
                units.Short,
                stacked=True,
                low=0,
                none="No accelerators requested",
            ),
        ),
        (
            6,
            value(
                "GPU hours",
                "Held in the time range, by namespace.",
                [
                    Query(
                        f"sum by (job_namespace) (increase({seconds}[$__range])) / 3600",
                        "{{job_namespace}}",
                        instant=True,
                    )
                ],
                units.Hours,
                none="No accelerators requested",
            ),
        ),
        (
            6,
            value(
                "Dearest jobs",
                "The five jobs with most GPU hours in their whole life.",
                [Query(f"topk(5, sum by ({JOB}) ({seconds})) / 3600", NAME, instant=True)],
                units.Hours,
                none="No accelerators requested",
            ),
        ),
    )


def _table() -> Row:
    def cell(expression: str) -> Query:
        return Query(expression, "", instant=True, table=True)

    def of(metric: str) -> str:
        return each(metric, of=IN_NAMESPACE)

    columns = {
        "cluster": "Cluster",
        "job_namespace": "Namespace",
        "job_name": "Job",
        "phase": "Phase",
        "Value #A": "Done",
        "Value #B": "Reward",
        "Value #C": "Held-out reward",
        "Value #D": "Restarts",
        "Value #E": "GPU time",
        "Value #F": "Age",
        "model": "Model",
        "method": "Method",
        "reward": "Rewards",
        "workers": "Workers",
        "queue": "Queue",
    }
    info = each("tailorpo_job_info", "model, method, reward, workers, queue", of=IN_NAMESPACE)
    done = f"{of('tailorpo_job_step')} / {of('tailorpo_job_iterations')}"
    link = (
        f"/d/{training.UID}?var-datasource=${{datasource}}&var-cluster=${{cluster:percentencode}}"
        '&var-namespace=${__data.fields["Namespace"]}&var-job=${__data.fields["Job"]}&${__url_time_range}'
    )
    return Row("All jobs").line(
        12,
        (
            24,
            rows(
                "Jobs",
                "Every job that exists; its name leads to its training. Reward: mean of the last iteration, as last "
                "written to the status. GPU time: held by all attempts.",
                [
                    cell(done),
                    cell(of("tailorpo_job_reward")),
                    cell(of("tailorpo_job_evaluation_reward")),
                    cell(of("tailorpo_job_restarts")),
                    cell(of("tailorpo_job_gpu_seconds_total")),
                    cell(f"time() - {of('tailorpo_job_created_timestamp_seconds')}"),
                    cell(f"{status()} == 1"),
                    cell(info),
                ],
                columns,
                {"Done": units.PercentUnit, "GPU time": units.Seconds, "Age": units.Seconds, "Restarts": units.NoUnit},
                job_link=link,
            ),
        ),
    )
