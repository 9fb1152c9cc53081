"""What pods answer at `/progress`: no answer stops the operator's loop, or makes it read more than a progress has."""

import asyncio
import gzip
import json
import logging
import random
from contextlib import suppress
from dataclasses import replace

import pytest

from tailorpo_operator.api import naming
from tailorpo_operator.api.naming import Key
from tailorpo_operator.controller.progress_poller import ProgressPoller
from tailorpo_operator.planning.observed import Pod, Report
from tailorpo_trainer.spec.progress import MAX_BYTES, Checkpoint, Progress
from tests.operator.stories import pod


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def saying(**fields: object) -> bytes:
    document = {"schemaVersion": 1, "attempt": 1, "phase": "Running", "step": 1, "of": 3, **fields}
    return json.dumps(document, ensure_ascii=False).encode()


WHOLE = Progress(
    attempt=1,
    phase="Running",
    step=7,
    checkpoint=Checkpoint(uri="s3://" + "ü" * 2171, step=5, time="2026-01-01T00:00:00Z"),
    resumed_from=Checkpoint(uri="s3://" + "ü" * 2171, step=1, time="2026-01-01T00:00:00Z"),
)
GOOD = {
    "plain": answer(saying()),
    "as much as a trainer says while it runs": answer(json.dumps(WHOLE.to_dict(), ensure_ascii=False).encode()),
    "one long word": answer(saying(message="A" * 15_000)),
    "one long address": answer(saying(message="a://" + "b" * 15_000)),
    "control characters": answer(saying(message="\x1b[2J" * 1000)),
}
BAD = {
    "nothing": b"",
    "no HTTP": b"\0" * 1000,
    "an error": answer(b"{}", status="500 \x1b[2J"),
    "another place": answer(b"", "Location: http://127.0.0.1:1/", status="302 Found"),
    "long headers": answer(saying(), *(f"X-{number}: {'x' * 8000}" for number in range(200))),
    "too much": answer(saying(message="A" * 64_000)),
    "a little too much": answer(saying() + b" " * MAX_BYTES),
    "less than it says": answer(saying())[:-5],
    "packed": answer(gzip.compress(saying(message=" " * 10_000_000)), "Content-Encoding: gzip"),
    "deep": answer(b"[" * 10_000),
    "deep objects": answer(b'{"a":' * 3000),
    "a long number": answer(b"1" * 5000),
    "a long step": answer(b'{"step":' + b"1" * 4000 + b"}"),
    "no text": answer(b"\xff\xfe{}"),
    "half a character": answer(b'{"message":"\\ud800"}'),
}
ENDLESS = "endless"


async def asked(answers: dict[str, bytes], until: set[str]) -> tuple[dict[str, Report], int]:
    """The reports of pods that answer so, by name, when those are there; and how much the endless one could send."""
    addresses = {
        name: f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{n + 2}" for n, name in enumerate(answers)
    }
    names = {address: name for name, address in addresses.items()}
    pods: dict[Key, Pod] = {Key("team", name): replace(pod(), uid=name, address=addresses[name]) for name in answers}
    reports: dict[Key, Report] = {}
    times, sent = dict.fromkeys(answers, 0), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        name = names[writer.get_extra_info("sockname")[0]]
        with suppress(OSError, EOFError):  # a request may time out on a busy machine
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answers[name])
            while name == ENDLESS:
                writer.write(b" " * 1024)
                await writer.drain()
                await asyncio.sleep(0)
                sent += 1024
            await writer.drain()
        times[name] += 1
        writer.close()

    server = await asyncio.start_server(serve, list(names), naming.METRICS_PORT)
    progresses = ProgressPoller(lambda: pods, reports, lambda key: None, interval=0.05, connections=100)
    asking = asyncio.create_task(progresses.run())
    try:
        async with asyncio.timeout(60):
            while min(times.values()) < 2 or not until <= {key.name for key in reports}:
                await asyncio.sleep(0.02)
                assert not asking.done()
    finally:
        asking.cancel()
        server.close()
    await asyncio.gather(asking, return_exceptions=True)
    return {key.name: report for key, report in reports.items()}, sent // times.get(ENDLESS, 1)


def test_no_answer_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Each pod is asked again and again, whatever the others have answered."""
    with caplog.at_level(logging.WARNING):
        reports, _ = asyncio.run(asked({**BAD, **GOOD}, set(GOOD)))
    assert set(reports) == set(GOOD)
    assert reports["as much as a trainer says while it runs"].progress.checkpoint == WHOLE.checkpoint
    assert all((report.progress.message or "").isprintable() for report in reports.values())
    assert caplog.messages == []


def test_no_more_is_read_than_a_progress_has() -> None:
    """The rest is what the system's own buffers take until the connection is closed."""
    endless = b"HTTP/1.1 200 OK\r\n\r\n"
    reports, sent = asyncio.run(asked({ENDLESS: endless, "plain": GOOD["plain"]}, {"plain"}))
    assert set(reports) == {"plain"}
    assert sent < 64 * MAX_BYTES
