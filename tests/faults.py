"""A proxy before an S3 server that injects faults of networks and servers."""

import http.client
import http.server
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """A fault of one request.

    status: respond with this (and `code`) without the server. reset: close the connection `before` or `after` the
    request is forwarded. rate: bytes a second of the bodies, in both directions. keep: bytes of the response's body
    before the connection is closed. then: called first, for example to kill a process.
    """

    status: int = 0
    code: str = "InternalError"
    reset: str = ""
    rate: float = 0.0
    keep: int | None = None
    then: Callable[[], None] = field(default=lambda: None)


Rule = Callable[[str, str], Fault | None]
"""From method and path (with query) to the fault; None: no fault."""


HeaderRule = Callable[[str, Mapping[str, str]], Fault | None]
"""From method and headers to the fault, for requests without one of `Rule`."""


class Proxy:
    """Forwards to `upstream`. `rule` may be changed at any time; `requests` and `injected` record what happened."""

    def __init__(self, upstream: str) -> None:
        self.rule: Rule = lambda method, path: None
        self.header_rule: HeaderRule = lambda method, headers: None
        self.requests: list[tuple[str, str]] = []
        self.injected = 0
        address = urlsplit(upstream)
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(ConnectionError):
                    super().handle_one_request()

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.requests.append((self.command, self.path))
                fault = proxy.rule(self.command, self.path) or proxy.header_rule(self.command, dict(self.headers))
                if fault is not None:
                    proxy.injected += 1
                    fault.then()
                proxy.forward(self, body, fault or Fault(), str(address.hostname), address.port or 80)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                pass  # the client was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def forward(self, handler: Any, body: bytes, fault: Fault, host: str, port: int) -> None:
        if fault.status:
            text = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
            text = text if fault.status >= 300 else b""
            return _answer(handler, fault.status, {"Content-Type": "application/xml"}, text, len(text), fault)
        if fault.reset == "before":
            return _break_off(handler)
        _slowly(len(body), fault)
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            # The Host header stays that of the proxy, because the client has signed it.
            connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() != "expect":  # http.server has answered it already
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            content = answer.read()
        except OSError:  # the server is down
            return _break_off(handler)
        finally:
            connection.close()
        if fault.reset == "after":
            return _break_off(handler)
        length = int(answer.getheader("Content-Length") or len(content))
        _slowly(len(content), fault)
        _answer(handler, answer.status, dict(answer.getheaders()), content, length, fault)

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def nth(number: int, fault: Fault, *, method: str = "PUT", within: str = "", times: int = 1) -> Rule:
    """The fault for `times` matching requests, beginning with the `number`th (from 1)."""
    count, lock = 0, threading.Lock()

    def rule(requested: str, path: str) -> Fault | None:
        nonlocal count
        if requested != method or within not in path:
            return None
        with lock:
            count += 1
            return fault if number <= count < number + times else None

    return rule


def always(fault: Fault, *, method: str = "PUT", within: str = "") -> Rule:
    """The fault for all matching requests."""
    return nth(1, fault, method=method, within=within, times=1 << 60)


def _answer(handler: Any, status: int, headers: dict[str, str], content: bytes, length: int, fault: Fault) -> None:
    handler.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in ("content-length", "transfer-encoding", "connection"):
            handler.send_header(name, value)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    if fault.keep is not None:
        handler.wfile.write(content[: fault.keep])
        handler.wfile.flush()
        _break_off(handler)
    elif handler.command != "HEAD":
        handler.wfile.write(content)


def _slowly(count: int, fault: Fault) -> None:
    if fault.rate:
        time.sleep(count / fault.rate)


def _break_off(handler: Any) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
