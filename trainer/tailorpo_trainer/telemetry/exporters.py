"""Who looks on at a run besides its own files: Prometheus, a kubelet, TensorBoard. Each is loaded when asked for."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tailorpo_trainer.telemetry.observer import Observer


@dataclass(frozen=True)
class TelemetryOptions:
    """What is asked for.

    Attributes:
        port: of `/metrics`, `/progress` and `/healthz`; 0 for any that is free, None for no server.
        stall_seconds: without a line of `metrics.jsonl`, after which `/healthz` says 503.
    """

    port: int | None = None
    host: str = "127.0.0.1"
    stall_seconds: float = 1800.0
    tensorboard: bool = False


@contextmanager
def open_exporters(output: Path, watch: TelemetryOptions) -> Iterator[list[Observer]]:
    """The observers, closed at the end. Raises `ConfigurationError` where one cannot be."""
    with ExitStack() as stack:
        observers: list[Observer] = []
        if watch.tensorboard:
            from tailorpo_trainer.telemetry.tensorboard import TensorBoard

            observers.append(TensorBoard(output))
        if watch.port is not None:
            from tailorpo_trainer.telemetry.prometheus import Metrics
            from tailorpo_trainer.telemetry.server import Health, serving

            metrics, health = Metrics(), Health(watch.stall_seconds)
            stack.enter_context(serving(watch.host, watch.port, metrics.registry, health))
            observers += [metrics, health]
        for observer in observers:
            stack.callback(observer.close)
        yield observers
