"""The server of Prometheus and its tool, built once from their Go module."""

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.cluster import build
from tests.cluster.control_plane import new_folder, reserved_port
from tests.cluster.processes import Family, Server
from tests.cluster.waiting import until
from tools.panels.api import Api

PROMETHEUS = build.Programs(
    what="Prometheus",
    module=Path(__file__).parent / "go",
    names=("prometheus", "promtool"),
    tags=("remove_all_sd",),  # targets are named; the clients of clouds would double the time of the build
    source="github.com/prometheus/prometheus",
    stamped="github.com/prometheus/common/version.Version",
)
SCRAPE_SECONDS = 0.5


@dataclass(frozen=True)
class Target:
    """What is scraped. labels: of the target, as a PodMonitor sets `namespace`, `pod` and `job`."""

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    honor_labels: bool = True


class Prometheus:
    """A running server; `api` asks it. Its targets and rules may be changed while it runs."""

    def __init__(self, family: Family, log: Path, port: int, scrape_seconds: float) -> None:
        """Not started yet."""
        self._folder, self._scrape = family.folder, scrape_seconds
        self._config = family.folder / "prometheus.yml"
        self.url = f"http://127.0.0.1:{port}"
        self.api = Api(self.url)
        command = [
            str(build.binaries(PROMETHEUS) / "prometheus"),
            f"--config.file={self._config}",
            f"--storage.tsdb.path={family.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-lifecycle",
            "--log.level=warn",
        ]
        self.server = Server(command, log, family, "prometheus")

    def start(self, targets: Iterable[Target] = (), rules: Sequence[Path] = ()) -> None:
        """Returns when it answers queries."""
        self._write(targets, rules)
        self.server.start()
        until(self._ready, f"Prometheus is ready (log: {self.server.log})")

    def configure(self, targets: Iterable[Target] = (), rules: Sequence[Path] = ()) -> None:
        """Replaces targets and files of rules."""
        self._write(targets, rules)
        with urlopen(Request(f"{self.url}/-/reload", method="POST"), timeout=30):
            pass

    def _ready(self) -> bool:
        self.server.check()
        try:
            with urlopen(f"{self.url}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except (OSError, HTTPException):
            return False

    def _write(self, targets: Iterable[Target], rules: Sequence[Path]) -> None:
        interval = f"{round(1000 * self._scrape)}ms"
        document = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [_scrape(number, target) for number, target in enumerate(targets)],
        }
        self._config.write_text(json.dumps(document))  # JSON is YAML


def _scrape(number: int, target: Target) -> dict[str, Any]:
    return {
        "job_name": f"target-{number}",
        "honor_labels": target.honor_labels,
        "static_configs": [{"targets": [target.address], "labels": dict(target.labels)}],
    }


@contextmanager
def prometheus(
    log: Path, targets: Iterable[Target] = (), rules: Sequence[Path] = (), scrape_seconds: float = SCRAPE_SECONDS
) -> Iterator[Prometheus]:
    """A server until the end of the `with`, which leaves nothing but its log; builds it first if that was not done."""
    build.binaries(PROMETHEUS)
    with ExitStack() as stack:
        family = Family(new_folder())
        stack.callback(family.end)
        port = _free_port()
        server = Prometheus(family, log, port, scrape_seconds)
        stack.callback(server.server.stop)
        server.start(targets, rules)
        yield server


def promtool(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs promtool, in `folder` if it is given."""
    command = [str(build.binaries(PROMETHEUS) / "promtool"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def _free_port() -> int:
    """Prometheus does not share its port, so that it cannot be reserved as the API server's."""
    with reserved_port() as port:
        return port
