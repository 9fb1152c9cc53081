"""What rank 0 answers over HTTP: `/metrics` for Prometheus, `/progress` for the operator, `/healthz` for a kubelet."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.telemetry.observer import Line, Observer, RunStart
from tailorpo_trainer.telemetry.termination import TerminationReporter

ANY = "::"
"""All addresses of this machine, of IPv4 and of IPv6."""

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Health(Observer):
    """Whether training goes on: it does as long as new lines of `metrics.jsonl` arrive."""

    def __init__(
        self, reporter: TerminationReporter, stall_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reporter, self.stall_seconds, self._clock = reporter, stall_seconds, clock
        self._last_line = clock()

    def begin(self, start: RunStart) -> None:
        self._last_line = self._clock()

    def observe(self, line: Line) -> None:
        self._last_line = self._clock()

    def problem(self) -> str | None:
        """Why the run is not healthy, in one line; None if it is."""
        progress = self.reporter.progress
        if progress.phase == "Failed":
            return f"failed: {progress.message}"
        idle = self._clock() - self._last_line
        if progress.phase != "Succeeded" and idle > self.stall_seconds:
            return f"stalled: nothing has happened for {idle:.0f} s, after iteration {progress.step}"
        return None


@contextmanager
def serving(host: str, port: int, registry: CollectorRegistry, health: Health) -> Iterator[str]:
    """Serve on a thread while inside, and yield the URL. Raises `ConfigurationError` if it cannot listen there."""
    if host == ANY and not socket.has_dualstack_ipv6():  # a kernel without IPv6
        host = "0.0.0.0"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind = _Server6 if family == socket.AF_INET6 else _Server
        server = make_server(str(address[0]), port, _app(registry, health), kind, _Handler)
    except socket.gaierror as error:
        raise ConfigurationError(f"--metrics-host {host}: is no address of this machine: {error.strerror}") from None
    except OSError as error:
        raise ConfigurationError(
            f"--metrics-port {port}: cannot listen on {host}: {error.strerror}; give another port, or 0 for any"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{server.server_port}"
    print(f"metrics: {url}/metrics", file=sys.stderr, flush=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """Uses a thread for each request, so that a slow client delays neither the other clients nor the end of the run."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to do: a client that disconnects is no error of the run."""

    def server_bind(self) -> None:
        # HTTPServer's own method would look up this machine's name in the DNS.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        if self.server_address[0] == ANY:  # the default of a system may be IPv6 alone
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds for one request, so that silent connections do not pile up

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: there would be a line for each scrape."""

    def address_string(self) -> str:
        return str(self.client_address[0])


def _app(registry: CollectorRegistry, health: Health) -> App:
    metrics: App = make_wsgi_app(registry)  # negotiates OpenMetrics and compression

    def app(environ: dict[str, Any], respond: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, respond)
        status, kind, body = _answer(path, health)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain; charset=utf-8", "use GET\n"
        data = body.encode()
        respond(status, [("Content-Type", kind), ("Content-Length", str(len(data))), ("Cache-Control", "no-store")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [data]

    return app


def _answer(path: str, health: Health) -> tuple[str, str, str]:
    text = "text/plain; charset=utf-8"
    if path == "/progress":
        values = health.reporter.progress.to_dict()
        return "200 OK", "application/json", json.dumps(values, ensure_ascii=False) + "\n"
    if path == "/healthz":
        problem = health.problem()
        return ("503 Service Unavailable", text, problem + "\n") if problem else ("200 OK", text, "ok\n")
    return "404 Not Found", text, "here are /metrics, /progress and /healthz\n"
