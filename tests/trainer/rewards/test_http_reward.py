"""The http reward against real local servers, with every kind of fault."""

import asyncio
import base64
import contextlib
import email.utils
import gc
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tailorpo_trainer.errors import ConfigurationError, NotFiniteError, RewardError, UnavailableError
from tailorpo_trainer.rewards.http import LONGEST_RETRY_AFTER, TOKEN, Clock, HttpReward, retry_after
from tailorpo_trainer.rewards.weighted_sum import RewardSum, Term

REFERENCE = Path(__file__).parents[3] / "docs" / "examples" / "reward_server.py"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for variable in (TOKEN, "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)


class FakeClock:
    """A clock whose waits take no time and are recorded. The jitter is always the largest."""

    def __init__(self):
        self.time, self.waits = 1000.0, []
        self.clock = Clock(now=lambda: self.time, sleep=self.sleep, jitter=lambda: 1.0)

    async def sleep(self, seconds):
        self.waits.append(seconds)
        self.time += seconds


@pytest.fixture
def fake():
    return FakeClock()


class Server:
    """Answers as the protocol says, with mean red as the score, but first with the faults, one a request.

    A fault is (status, text[, headers]) or a function of the handler; `forever` is the answer after them.
    """

    def __init__(self, *faults, forever=None):
        self.faults, self.forever = list(faults), forever
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.most = 0
        self.lock = threading.Lock()
        self.gate: threading.Barrier | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer.lock:
                    outer.requests.append(request)
                    outer.headers.append(dict(self.headers))
                    fault = outer.faults.pop(0) if outer.faults else outer.forever
                    outer.active += 1
                    outer.most = max(outer.most, outer.active)
                if outer.gate is not None:
                    with contextlib.suppress(threading.BrokenBarrierError):
                        outer.gate.wait(5)
                with outer.lock:
                    outer.active -= 1
                if callable(fault):
                    fault(self)
                else:
                    answer(
                        self,
                        *(fault or (200, json.dumps({"scores": [red(png) for png in request["images"]]}))),
                    )

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


def answer(handler, status, text, headers=()):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        handler.send_response(status)
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(text.encode())))
        handler.end_headers()
        handler.wfile.write(text.encode())


def hang_up(handler):
    handler.close_connection = True
    handler.connection.close()


def silent(handler):
    """Waits until the client hangs up."""
    with contextlib.suppress(OSError):
        handler.rfile.read(1)
    handler.close_connection = True


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def red(png):
    return float(pixels(png)[..., 0].mean() / 255)


@pytest.fixture
def serve():
    servers = []

    def start(*faults, **given):
        servers.append(Server(*faults, **given))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture
def dead():
    """A URL whose port refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/score"


def reward(fake, *urls, **given):
    return HttpReward(endpoints=urls, clock=fake.clock, **{"timeout_seconds": 5.0, **given})


def expected(images):
    return ((images * 255).round() / 255)[:, 0].mean((1, 2))


def test_request_and_scores(serve, fake, pictures, prompts):
    server = serve()
    images = pictures()
    torch.testing.assert_close(reward(fake, server.url)(images, prompts), expected(images), atol=1e-5, rtol=0)
    (request,) = server.requests
    assert (request["version"], request["prompts"]) == (1, prompts)
    sent = np.stack([pixels(png) for png in request["images"]])
    np.testing.assert_array_equal(sent, (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    assert fake.waits == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16])
def test_batches_and_endpoints_keep_the_order(serve, fake, pictures, size):
    servers = [serve(), serve()]
    images, names = pictures(7), [f"prompt {n}" for n in range(7)]
    scores = reward(fake, *(server.url for server in servers), batch_size=size)(images, names)
    torch.testing.assert_close(scores, expected(images), atol=1e-5, rtol=0)
    counts = [len(server.requests) for server in servers]
    assert sum(counts) == -(-7 // size)
    assert abs(counts[0] - counts[1]) <= 1
    sent = [request["prompts"] for server in servers for request in server.requests]
    assert sorted(itertools.chain(*sent)) == names


def test_one_batch_a_call_still_goes_round_all_endpoints(serve, fake, pictures, prompts):
    servers = [serve(), serve(), serve()]
    score = reward(fake, *(server.url for server in servers))
    for _ in range(6):
        score(pictures(), prompts)
    assert [len(server.requests) for server in servers] == [2, 2, 2]


def test_its_connections_end_with_it(serve, fake, pictures, prompts):
    score = reward(fake, serve().url)
    score(pictures(), prompts)
    gc.collect()  # what others have left
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        del score
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_batches_are_in_flight_together(serve, fake, pictures, prompts):
    server = serve()
    server.gate = threading.Barrier(2)  # no request is answered until there are two
    reward(fake, server.url, batch_size=1)(pictures(), prompts)
    assert server.most == 2


@pytest.mark.parametrize(
    "fault",
    [(500, "oops"), (503, ""), (429, "slow down"), (408, ""), hang_up],
    ids=lambda fault: str(fault)[:12],
)
def test_a_fault_that_passes(serve, fake, pictures, prompts, fault):
    server = serve(fault, fault, fault)
    scores = reward(fake, server.url)(pictures(), prompts)
    torch.testing.assert_close(scores, expected(pictures()), atol=1e-5, rtol=0)
    assert fake.waits == [1, 2, 4]
    assert len(server.requests) == 4


def test_backoff_grows_to_a_limit_and_is_random(serve, pictures, prompts):
    fake = FakeClock()
    fake.clock = Clock(fake.clock.now, fake.clock.sleep, jitter=iter([0.5, 0.1, 0.9] + [1.0] * 5).__next__)
    with pytest.raises(UnavailableError):
        reward(fake, serve(forever=(500, "")).url, retries=8)(pictures(), prompts)
    assert fake.waits == pytest.approx([0.5, 0.2, 3.6, 8, 16, 30, 30, 30])


@pytest.mark.parametrize("retries", [0, 2])
def test_a_fault_that_stays(serve, fake, pictures, prompts, retries):
    server = serve(forever=(503, "the model is\nloading"))
    with pytest.raises(UnavailableError) as caught:
        reward(fake, server.url, retries=retries)(pictures(), prompts)
    assert str(caught.value) == (
        f"reward 'http': no score from {server.url} after {retries} retries; "
        f"the last error was {server.url}: HTTP 503 'the model is loading'"
    )
    assert len(server.requests) == retries + 1


def test_refused_connection(fake, dead, pictures, prompts):
    with pytest.raises(UnavailableError, match=f"no score from {dead} after 3 retries; .*ConnectError.*refused"):
        reward(fake, dead, retries=3)(pictures(), prompts)
    assert fake.waits == [1, 2, 4]


def test_slower_than_the_timeout(serve, fake, pictures, prompts):
    server = serve(silent)
    scores = reward(fake, server.url, timeout_seconds=0.3, retries=20)(pictures(), prompts)
    torch.testing.assert_close(scores, expected(pictures()), atol=1e-5, rtol=0)
    assert fake.waits[0] == 1  # on a busy machine more answers may be too late
    with pytest.raises(UnavailableError, match=r"no whole answer within 0\.2 s"):
        reward(fake, serve(silent).url, timeout_seconds=0.2, retries=0)(pictures(), prompts)


def endless(handler):
    with contextlib.suppress(OSError):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(4096):
            handler.wfile.write(b" " * 65_536)
    handler.close_connection = True


def bomb(handler):
    """256 MB of blanks, compressed to 256 kB."""
    packer = zlib.compressobj(wbits=31)
    packed = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(256)) + packer.flush()
    with contextlib.suppress(OSError):
        handler.send_response(200)
        handler.send_header("content-encoding", "gzip")
        handler.send_header("content-length", str(len(packed)))
        handler.end_headers()
        handler.wfile.write(packed)


def drip(handler, begin=b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"):
    """A byte now and then: each read succeeds, and the answer is never whole."""
    with contextlib.suppress(OSError):
        handler.wfile.write(begin)
        for _ in range(400):
            handler.wfile.write(b"x")
            time.sleep(0.05)
    handler.close_connection = True


def drip_headers(handler):
    drip(handler, b"HTTP/1.1 200 OK\r\nx-header: ")


@pytest.mark.parametrize("fault", [endless, bomb])
def test_an_answer_longer_than_any_scores(serve, fake, pictures, prompts, fault):
    with pytest.raises(RewardError, match=r"answered more than 131,328 bytes for 4 pictures: '"):
        reward(fake, serve(fault).url)(pictures(), prompts)


@pytest.mark.parametrize("fault", [drip, drip_headers])
def test_an_answer_that_never_ends(serve, fake, pictures, prompts, fault):
    server = serve(fault)
    scores = reward(fake, server.url, timeout_seconds=0.3, retries=20)(pictures(), prompts)
    torch.testing.assert_close(scores, expected(pictures()), atol=1e-5, rtol=0)
    assert fake.waits[0] == 1


def test_a_signal_ends_the_wait_and_leaves_nothing(serve, fake, pictures, prompts):
    """What the handler raises ends the call at once, and the connection with it."""
    arrived, closed = threading.Event(), threading.Event()

    def unanswered(handler):
        arrived.set()
        assert handler.rfile.read(1) == b""  # returns when the client hangs up
        closed.set()

    class Interrupted(BaseException):
        pass

    def handle(number, frame):
        raise Interrupted

    score = reward(fake, serve(unanswered).url, timeout_seconds=600.0)

    def interrupt():
        if arrived.wait(30):
            os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(Interrupted):
            score(pictures(), prompts)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert closed.wait(30)


def test_this_machine_is_asked_without_a_proxy(serve, fake, pictures, prompts, monkeypatch):
    for variable in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "socks5h://127.0.0.1:9")
    scores = reward(fake, serve().url)(pictures(), prompts)
    torch.testing.assert_close(scores, expected(pictures()), atol=1e-5, rtol=0)


def test_others_are_asked_through_the_proxy(fake, pictures, prompts, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"ConnectError|ProxyError"):
        reward(fake, "http://scorer.invalid/score", retries=0)(pictures(), prompts)


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:1", "socks4://127.0.0.1:1", "http://[::1"])
def test_a_proxy_that_cannot_be_used(fake, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="endpoints: no connection can be made by ALL_PROXY: "):
        reward(fake, "http://scorer/score")


def test_one_of_two_endpoints_is_dead(serve, fake, dead, pictures, prompts):
    server = serve()
    score = reward(fake, dead, server.url, batch_size=1)
    for _ in range(3):
        torch.testing.assert_close(score(pictures(), prompts), expected(pictures()), atol=1e-5, rtol=0)
    assert fake.waits == []  # the other endpoint is tried immediately
    assert len(server.requests) == 12


def test_a_failed_endpoint_is_asked_last_for_a_while_and_then_again(serve, fake, pictures, prompts):
    first, second = serve((500, "")), serve()
    score = reward(fake, first.url, second.url)
    counts = []
    for pause in (0, 10, 10, 20, 0):
        fake.time += pause
        score(pictures(), prompts)
        counts.append((len(first.requests), len(second.requests)))
    assert counts == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 4)]


def test_all_endpoints_are_named_when_all_fail(serve, fake, dead, pictures, prompts):
    server = serve(forever=(502, "bad gateway"))
    with pytest.raises(UnavailableError) as caught:
        reward(fake, dead, server.url, retries=1)(pictures(), prompts)
    assert f"no score from {dead}, {server.url} after 1 retries" in str(caught.value)
    assert len(server.requests) == 2
    assert fake.waits == [1]


def test_retry_after_is_honoured(serve, fake, pictures, prompts):
    server = serve((429, "", {"Retry-After": "7"}), (503, "", {"retry-after": "0"}))
    reward(fake, server.url)(pictures(), prompts)
    assert fake.waits == [7, 2]


def test_retry_after_closes_one_endpoint_not_the_other(serve, fake, pictures, prompts):
    busy, other = serve((429, "", {"Retry-After": "50"})), serve((500, ""), (500, ""))
    reward(fake, busy.url, other.url)(pictures(), prompts)
    assert (len(busy.requests), len(other.requests)) == (1, 3)
    assert fake.waits == [1, 2]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        ("1.5", 1.5),
        ("-4", 0),
        ("", 0),
        ("soon", 0),
        ("nan", 0),
        ("86400", LONGEST_RETRY_AFTER),
        ("inf", 120),
    ],
)
def test_retry_after_values(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_as_a_date():
    assert retry_after(email.utils.formatdate(time.time() + 20, usegmt=True)) == pytest.approx(20, abs=2)
    assert retry_after(email.utils.formatdate(time.time() - 20, usegmt=True)) == 0


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 307])
def test_a_refusal_is_final_and_quoted(serve, fake, pictures, prompts, status):
    server = serve(forever=(status, "no: " + "x" * 5000))
    with pytest.raises(ConfigurationError) as caught:
        reward(fake, server.url)(pictures(), prompts)
    assert f"{server.url} refused the request with HTTP {status} 'no: xxx" in str(caught.value)
    assert len(str(caught.value)) < 400
    assert len(server.requests) == 1
    assert fake.waits == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<html>hello</html>", "answered '<html>hello</html>', not JSON"),
        ("", "not JSON"),
        ("[1, 2, 3, 4]", "not JSON such as"),
        ('{"score": [1, 2, 3, 4]}', "not JSON such as"),
        ('{"scores": 4}', "are not a list of numbers"),
        ('{"scores": [1, 2, 3, "4"]}', "are not a list of numbers"),
        ('{"scores": [1, 2, 3, null]}', "are not a list of numbers"),
        ('{"scores": [1, 2, 3, true]}', "are not a list of numbers"),
        ('{"scores": [1, 2, 3]}', "answered 3 scores for 4 pictures"),
        ('{"scores": [1, 2, 3, 4, 5]}', "answered 5 scores for 4 pictures"),
    ],
)
def test_an_answer_that_is_no_score_a_picture(serve, fake, pictures, prompts, text, problem):
    server = serve(forever=(200, text))
    with pytest.raises(RewardError, match=problem):
        reward(fake, server.url)(pictures(), prompts)
    assert len(server.requests) == 1


def test_nan_is_left_to_the_sum(serve, fake, pictures, prompts):
    score = reward(fake, serve(forever=(200, '{"scores": [1, NaN, 3, 4]}')).url)
    assert score(pictures(), prompts).isnan().tolist() == [False, True, False, False]
    with pytest.raises(NotFiniteError, match=f"reward 'taste' returned nan for prompt '{prompts[1]}'"):
        RewardSum([Term("taste", 1.0, score)])(pictures(), prompts)


def test_the_first_final_failure_ends_the_other_batches(serve, pictures, prompts):
    server = serve((500, "", {"Retry-After": "100"}), forever=(400, "no"))
    server.gate = threading.Barrier(2)  # both batches arrive before one is refused and the other has to wait
    score = HttpReward(endpoints=[server.url], batch_size=2)  # with the real clock, on which 100 s would be a timeout
    with pytest.raises(ConfigurationError):
        score(pictures(), prompts)
    left = asyncio.run_coroutine_threadsafe(_others(), score._loop)
    assert left.result(30) == 0


async def _others():
    """How many other tasks its event loop has."""
    return len(asyncio.all_tasks()) - 1


def test_token(serve, fake, pictures, prompts, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv(TOKEN, "tell-nobody\n")
    server = serve(None, (403, "token tell-nobody is not known"))
    score = reward(fake, server.url)
    score(pictures(), prompts)
    assert server.headers[0]["authorization"] == "Bearer tell-nobody"
    with pytest.raises(ConfigurationError, match="token … is not known") as caught:
        score(pictures(), prompts)
    assert "tell-nobody" not in caplog.text + str(caught.value)


def test_no_token_no_header(serve, fake, pictures, prompts):
    server = serve()
    reward(fake, server.url)(pictures(), prompts)
    assert "authorization" not in {name.lower() for name in server.headers[0]}


@pytest.mark.parametrize("token", ["two\nlines", "café"])
def test_token_that_no_header_can_hold(fake, monkeypatch, token):
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(ConfigurationError, match=TOKEN) as caught:
        reward(fake, "http://127.0.0.1:9/")
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://host/", "is no http:// or https:// URL"),
        ("host:8080", "is no http"),
        ("http://", "is no http"),
        ("http://host:port/", "not a URL"),
        ("http://me:hunter2@host/", "the URL of host holds a password"),
    ],
)
def test_endpoints_that_are_none(fake, url, text):
    with pytest.raises(ConfigurationError, match=f"^endpoints: .*{text}") as caught:
        reward(fake, url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="needs at least one URL"):
        reward(fake)


def test_a_query_is_sent_but_not_shown(serve, fake, dead, pictures, prompts):
    reward(fake, serve().url + "?key=hunter2")(pictures(), prompts)
    with pytest.raises(UnavailableError) as caught:
        reward(fake, dead + "?key=hunter2", retries=0)(pictures(), prompts)
    assert "hunter2" not in str(caught.value)
    assert dead in str(caught.value)


def test_the_reference_server(fake, pictures, prompts):
    command = [sys.executable, str(REFERENCE), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split()[-1])
        images = pictures()
        score = reward(fake, f"http://127.0.0.1:{port}/", batch_size=3)
        r, g, b = ((images * 255).round() / 255).mean((2, 3)).unbind(1)
        torch.testing.assert_close(score(images, prompts), (r - (g + b) / 2).clamp(min=0), atol=1e-5, rtol=0)
        assert score(images, prompts).max() > 0.01
        for request, problem in [
            ({"version": 1, "images": [], "prompts": ["one too many"]}, "zip"),
            ({"version": 2, "images": [], "prompts": []}, "version 2 is not spoken here"),
            ({"version": 1, "images": ["AAAA"], "prompts": ["no picture"]}, "cannot identify image"),
            ([], "TypeError"),
        ]:
            refusal = httpx.post(f"http://127.0.0.1:{port}/", json=request)
            assert refusal.status_code == 400
            assert problem in refusal.text
    finally:
        process.terminate()
        process.communicate(timeout=10)
