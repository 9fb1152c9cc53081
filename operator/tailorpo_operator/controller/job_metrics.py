"""From a job's status to its metrics: figures at each scrape, and durations once, when they are written."""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson

from tailorpo_operator import metrics
from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Status
from tailorpo_operator.kube.cache import CachedJob
from tailorpo_operator.metrics import Jobs, JobSample
from tailorpo_operator.planning.causes import REASONS
from tailorpo_operator.planning.observed import time
from tailorpo_operator.planning.status_diff import newly_begun, newly_ended, newly_ready

FINISHED = ("Succeeded", "Failed")
LABEL_LENGTH = 128
"""Characters of a label's value at most."""

# From 0 on: `increase` of Prometheus does not see the first end of a counter that begins with it.
for _known in REASONS:
    metrics.ATTEMPTS.labels(_known.reason)


def observe(namespace: str, before: Status, after: Status) -> None:
    """Counts what has begun and ended with a status that was just written."""
    for durations in (metrics.PENDING_DURATION, metrics.RUNNING_DURATION, metrics.LOST_STEPS):
        durations.labels(namespace)  # from 0 on, as above
    for attempt in newly_ended(before, after):
        metrics.ATTEMPTS.labels(attempt.reason).inc()
        if attempt.ready is not None and attempt.end is not None:
            metrics.RUNNING_DURATION.labels(namespace).observe(_seconds(attempt.ready, attempt.end))
    for attempt in newly_ready(before, after):
        if attempt.start is not None and attempt.ready is not None:
            metrics.PENDING_DURATION.labels(namespace).observe(_seconds(attempt.start, attempt.ready))
    reached = {attempt.number: attempt.step_to for attempt in after.attempts}
    saved = after.checkpoint.step if after.checkpoint is not None else 0
    for attempt in newly_begun(before, after):
        if (step := reached.get(attempt.number - 1)) is not None:
            metrics.LOST_STEPS.labels(namespace).observe(max(0, step - saved))


def jobs(cached: Mapping[Key, CachedJob], now: datetime, limit: int) -> Jobs:
    """All jobs by phase, and the figures of at most `limit` of them: of active ones first, then of the newest."""
    phases = Counter(job.phase for job in cached.values())
    chosen = list(cached.items())
    if len(chosen) > limit:
        chosen = heapq.nsmallest(
            limit, chosen, key=lambda item: (item[1].phase in FINISHED, -item[1].created.timestamp(), item[0])
        )
    return Jobs(phases, [sample(key, job, now) for key, job in chosen], len(cached) - len(chosen))


def sample(key: Key, cached: CachedJob, now: datetime) -> JobSample:
    """The figures of one job. Those that are not known are absent."""
    raw = orjson.loads(cached.text)
    figures = {"created": cached.created.timestamp()}
    if cached.unready_since is not None:
        figures["pending"] = _seconds(cached.unready_since, now)
    info: tuple[str, ...] = ("",) * len(metrics.INFO)
    reason = None
    try:
        info = _info(raw["spec"])
        status = raw.get("status") or {}
        figures.update((name, float(value)) for name, value in _figures(raw["spec"], status, now) if value is not None)
        if cached.phase == "Failed":
            reason = next((each["reason"] for each in status["conditions"] if each["type"] == "Failed"), None)
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # another version of the definition admitted it, and the reconciler reports that
    return JobSample(key.namespace, key.name, cached.uid, cached.phase, info, reason, figures)


def _figures(spec: Mapping[str, Any], status: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, Any]]:
    attempts = status.get("attempts") or []
    yield "attempts", attempts[-1]["number"] if attempts else 0
    yield "restarts", status.get("restarts", 0)
    yield "iterations", spec["training"]["iterations"]
    yield "step", (status.get("progress") or {}).get("step")
    yield "checkpoint_step", (status.get("checkpoint") or {}).get("step")
    last = status.get("metrics") or {}
    yield "reward", last.get("reward")
    yield "evaluation_reward", last.get("evaluation")
    for name, field in (("start", "startTime"), ("completion", "completionTime")):
        yield name, time(status[field]).timestamp() if status.get(field) else None
    yield "gpu_seconds", status.get("acceleratorSeconds", 0) + _running_seconds(attempts, now)


def _running_seconds(attempts: list[Mapping[str, Any]], now: datetime) -> float:
    """Accelerators times seconds of the attempt that runs."""
    last = attempts[-1] if attempts else {}
    if not last.get("ready") or last.get("end"):
        return 0.0
    return float(last.get("accelerators", 0) * _seconds(time(last["ready"]), now))


def _info(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The values of `metrics.INFO`."""
    model = "/".join([part for part in spec["model"]["name"].split("://")[-1].split("/") if part][-2:])
    rewards = "+".join(reward["name"] for reward in spec["rewards"])
    queue = (spec.get("scheduling") or {}).get("queueName") or ""
    texts = (model, spec["method"]["name"], rewards, str(spec["workers"]), queue)
    return tuple(text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1]}…" for text in texts)


def _seconds(begin: datetime, end: datetime) -> float:
    """Never negative, though clocks may be set back."""
    return max(0.0, (end - begin).total_seconds())
