"""The HTTP server of rank 0: progress, health, and the errors when it cannot listen."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry

from tailorpo_trainer.errors import ConfigurationError, RewardError
from tailorpo_trainer.spec.progress import Progress
from tailorpo_trainer.telemetry import termination
from tailorpo_trainer.telemetry.observer import RunStart
from tailorpo_trainer.telemetry.server import Health, serving
from tailorpo_trainer.telemetry.termination import TerminationReporter


def get(url: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urlopen(Request(url, method=method), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def health(clock: SimpleNamespace) -> Health:
    reporter = TerminationReporter(Progress(name="test", phase="Starting", of=9))
    return Health(reporter, 60, lambda: clock.now)


@pytest.fixture
def url(health: Health) -> Iterator[str]:
    with serving("127.0.0.1", 0, CollectorRegistry(), health) as url:
        yield url


def test_health_is_lines_that_come(url: str, health: Health, clock: SimpleNamespace) -> None:
    assert get(f"{url}/healthz") == (200, "ok\n")
    clock.now = 61
    assert get(f"{url}/healthz")[0] == 503  # nothing was loaded for a minute
    health.begin(RunStart(1, 0, {}, []))
    health.reporter.report(Progress(name="test", phase="Running", step=3))
    for kind in ("iteration", "evaluation", "checkpoint"):
        assert get(f"{url}/healthz")[0] == 200
        clock.now += 61
        assert get(f"{url}/healthz") == (503, "stalled: nothing has happened for 61 s, after iteration 3\n")
        health.observe({"kind": kind})
    clock.now += 61
    health.reporter.report(Progress(name="test", phase="Succeeded"))
    assert get(f"{url}/healthz")[0] == 200
    health.reporter.end(RewardError("broken\nat last"))
    assert get(f"{url}/healthz") == (503, "failed: broken\n")


def test_progress_is_what_is_known(url: str, health: Health) -> None:
    health.reporter.report(Progress(name="tést", phase="Running", step=3))
    status, text = get(f"{url}/progress")
    assert status == 200
    assert json.loads(text) == health.reporter.progress.to_dict()


def test_other_questions(url: str) -> None:
    assert get(f"{url}/")[0] == 404
    assert get(f"{url}/progress", "POST")[0] == 405
    assert get(f"{url}/progress", "HEAD") == (200, "")
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as silent:
        silent.sendall(b"GET /healthz")  # and no more: nobody else waits for it
        assert get(f"{url}/healthz")[0] == 200


def test_a_port_that_is_taken_is_one_sentence(health: Health) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                ConfigurationError, match=rf"--metrics-port {port}: cannot listen on 127.0.0.1: Address .* use"
            ),
            serving("127.0.0.1", port, CollectorRegistry(), health),
        ):
            pass


def test_a_host_that_is_none_is_one_sentence(health: Health) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"--metrics-host not a host: is no address"),
        serving("not a host", 0, CollectorRegistry(), health),
    ):
        pass


def test_ipv6(health: Health) -> None:
    with serving("::1", 0, CollectorRegistry(), health) as url:
        assert url.startswith("http://[::1]:")
        assert get(f"{url}/healthz")[0] == 200


@pytest.mark.parametrize("dual", [True, False])
def test_both_families(health: Health, monkeypatch: pytest.MonkeyPatch, dual: bool) -> None:
    """As a pod listens: on a cluster of IPv4, of IPv6, or of both; and on a kernel without IPv6."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: dual)
    with serving("::", 0, CollectorRegistry(), health) as url:
        port = url.rpartition(":")[2]
        for host in ("127.0.0.1", *(["[::1]"] if dual else [])):
            assert get(f"http://{host}:{port}/healthz")[0] == 200


def test_a_taken_port_ends_the_run_before_anything_is_loaded(
    start: Any, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert start("--metrics-port", str(port), rewards=[{"name": "colourfulness"}]) == 78
    assert f"error: --metrics-port {port}: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    reported = termination.read(log)
    assert reported is not None
    assert (reported.name, reported.phase) == ("test", "Failed")


def test_a_run_answers_while_it_trains_and_leaves_its_port(
    start: Any, probe: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    observed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    printed: list[str] = []

    def on_call(call: int) -> None:
        printed.extend(capsys.readouterr().err.split())
        url = printed[-1].removesuffix("/metrics")
        assert get(f"{url}/healthz") == (200, "ok\n")
        file = json.loads((tmp_path / "run" / "progress.json").read_text())
        observed.append((file, json.loads(get(f"{url}/progress")[1])))

    probe(on_call)
    assert start("--metrics-port", "0") == 0
    assert [served["step"] for _, served in observed] == [0, 0, 1, 1, 2, 2]
    for file, served in observed:
        # A checkpoint may be committed between the two, so the answer, which is asked for later, may know a newer one.
        before, after = (
            (values.pop("checkpoint", {"step": 0})["step"], values.pop("updated")) for values in (file, served)
        )
        assert before <= after
        assert served == file
    with pytest.raises(OSError, match="refused"):
        get(printed[-1])
