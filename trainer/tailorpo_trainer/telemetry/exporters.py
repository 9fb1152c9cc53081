"""Exporters of a run beside its own files: Prometheus, health checks, TensorBoard. Each is imported when asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tailorpo_trainer.spec.job import TrainingSpec
from tailorpo_trainer.telemetry.observer import Observer
from tailorpo_trainer.telemetry.termination import TerminationReporter


@dataclass(frozen=True)
class TelemetryOptions:
    """The exporters that the user asked for.

    Attributes:
        port: of `/metrics`, `/progress` and `/healthz`; 0 for any free port, None for no server.
        stall_seconds: `/healthz` answers 503 after so many seconds without a new line of `metrics.jsonl`.
    """

    port: int | None = None
    host: str = "127.0.0.1"
    stall_seconds: float = 1800.0
    tensorboard: bool = False


@contextmanager
def open_exporters(
    output: Path,
    telemetry: TelemetryOptions | None,
    reporter: TerminationReporter,
    run: TrainingSpec,
    costs: Callable[[], Mapping[str, float]],
    processes: int,
) -> Iterator[list[Observer]]:
    """The exporters as observers, closed at the end. Raises `ConfigurationError` if one fails.

    telemetry: None: no exporters.
    costs, processes: as of `prometheus.Metrics`.
    """
    with ExitStack() as stack:
        observers: list[Observer] = []
        telemetry = telemetry or TelemetryOptions()
        if telemetry.tensorboard:
            from tailorpo_trainer.telemetry.tensorboard import TensorBoard

            observers.append(TensorBoard(output))
        if telemetry.port is not None:
            from tailorpo_trainer.telemetry.accelerator import find_accelerator
            from tailorpo_trainer.telemetry.prometheus import LABELS, Metrics, identity
            from tailorpo_trainer.telemetry.server import Health, serving

            labels = dict(zip(LABELS, identity(reporter.progress), strict=True))
            metrics = Metrics(
                reporter.progress,
                steps=run.sampling.steps,
                costs=costs,
                accelerator=find_accelerator(run, labels),
                processes=processes,
            )
            health = Health(reporter, telemetry.stall_seconds)
            stack.enter_context(serving(telemetry.host, telemetry.port, metrics.registry, health))
            observers += [metrics, health]
        for observer in observers:
            stack.callback(observer.close)
        yield observers
