"""Whole runs with checkpoints in S3: killed anywhere, each time resumed on an empty machine, and equal in the end."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from tailorpo_trainer import checkpoint
from tailorpo_trainer.checkpoint import background
from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import ConfigurationError, ExitCode, ResourceError, TailorPOError, UnavailableError
from tailorpo_trainer.training import loop, session
from tests.faults import Fault, Proxy, always, nth

Make = Callable[..., dict[str, Any]]
ITERATIONS, EVERY = 12, 2


class Trainee:
    """Machines that run the same document, one after the other; each begins with an empty folder."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, document: dict[str, Any]) -> None:
        self.process, self.folder, self.machines, self.pid = process, folder, 0, 0
        self.file = folder / "job.json"  # JSON is YAML
        self.file.write_text(json.dumps(document))

    @property
    def machine(self) -> Path:
        return self.folder / f"machine-{self.machines}"

    @property
    def output(self) -> Path:
        return self.machine / "runs" / "test"

    def start(self, *options: str) -> None:
        assert self.process.stdin is not None
        self.machines += 1
        self.machine.mkdir()
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        line = [str(self.machine), environment, "run", str(self.file), "--json", *options]
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        self.pid = self._number()

    def end(self) -> int:
        """Waits: exit code, or minus the signal."""
        return self._number()

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def killed_document(document: Make, bucket: str) -> dict[str, Any]:
    return document(
        training={"iterations": ITERATIONS, "promptsPerIteration": 2},
        evaluation={"everyIterations": 4, "images": 2},
        checkpoint={"everyIterations": EVERY, "keep": 2, "storage": f"s3://{bucket}/run"},
    )


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything, and forks."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "trainee.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def trainee(document: Make, forks: "subprocess.Popen[str]", faults: Proxy, s3_bucket: str, tmp_path: Path) -> Trainee:
    return Trainee(forks, tmp_path, killed_document(document, s3_bucket))


def hashes(place: Path | str) -> dict[str, str]:
    """SHA-256 of the tensors of the newest checkpoint, which is the last."""
    found = checkpoint.latest(checkpoint.open_store(place))
    assert found is not None
    assert found.step == ITERATIONS
    return {name: entry.sha256 for name, entry in found.manifest.objects.items() if name != "state.json"}


def history(folder: Path) -> list[tuple[str, int, float | None]]:
    """Kind, iteration and reward of each line of `metrics.jsonl` that does not depend on timing."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Checkpoints are committed in the background, so their lines come at any time.
    shown = [line for line in found if line["kind"] not in ("alarm", "checkpoint")]
    return [(line["kind"], line["iteration"], line.get("reward")) for line in shown]


def killings(trainee: Trainee, count: int, drawn: random.Random) -> Iterator[tuple[str, Callable[[str, str], Any]]]:
    """Moments: just before or after some put lands, the manifest's among them, or whenever something is asked."""
    for number in range(count):
        kind = ("objects", "manifest", "anything")[number % 3]
        fault = Fault(reset=drawn.choice(("before", "after")), then=trainee.kill)
        match kind:
            case "objects":
                rule = nth(drawn.randint(1, 6), fault, within="/step-")
            case "manifest":
                rule = nth(drawn.randint(1, 2), fault, within="manifest.json")
            case _:
                rule = nth(drawn.randint(1, 25), fault, method=drawn.choice(("GET", "PUT")))
        yield kind, rule


def kill_and_resume(trainee: Trainee, faults: Proxy, count: int, seed: int) -> dict[str, int]:
    """Counts of what happened, until a run is left alone and ends by itself."""
    counts = {"kills": 0, "resumes": 0, "finished before its kill": 0}
    for _, faults.rule in killings(trainee, count, random.Random(seed)):
        trainee.start()
        status = trainee.end()
        log = (trainee.machine / "log").read_text()
        assert status in (0, -signal.SIGKILL), log
        counts["kills" if status else "finished before its kill"] += 1
        counts["resumes"] += "going on after" in log
    faults.rule = lambda *_: None
    trainee.start()
    assert trainee.end() == 0
    counts["resumes"] += "going on after" in (trainee.machine / "log").read_text()
    return counts


@pytest.mark.timeout(300)  # five runs, one after the other
def test_killed_in_the_upload_and_resumed_on_empty_machines(
    document: Make, trainee: Trainee, faults: Proxy, s3_bucket: str, tmp_path: Path, s3_server: Any
) -> None:
    loop.run(parse(killed_document(document, s3_bucket)), tmp_path / "whole", display="quiet")
    counts = kill_and_resume(trainee, faults, 3, seed=0)
    assert counts["kills"] == 3
    assert counts["resumes"] >= 1
    assert hashes(f"s3://{s3_bucket}/run") == hashes(tmp_path / "whole")
    assert history(trainee.output) == history(tmp_path / "whole")
    client = s3_server.client()
    kept = [item["Key"] for item in client.list_objects_v2(Bucket=s3_bucket, Prefix="run/")["Contents"]]
    newest = f"run/attempt-{trainee.machines:04d}/output/"
    for name in ("report.html", "metrics.jsonl", "job.yaml", "prompts.json", "environment.json", "progress.json"):
        assert newest + name in kept
    (adapter,) = (key for key in kept if key.startswith(f"{newest}adapter/"))
    stored = load(client.get_object(Bucket=s3_bucket, Key=adapter)["Body"].read())
    expected = load(next((tmp_path / "whole" / "adapter").iterdir()).read_bytes())
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    pictures = {key.partition("/samples/")[2] for key in kept if "/output/samples/" in key}
    assert pictures == {f"iteration-{step:06d}/{n:03d}.png" for step in (0, 4, 8, 12) for n in (0, 1)}
    trainee.start()  # on one more empty machine: there is nothing left to do
    assert trainee.end() == 0
    assert "complete after 12 iterations" in (trainee.machine / "log").read_text()
    assert history(trainee.output) == history(tmp_path / "whole")
    assert len(list(trainee.output.rglob("*.png"))) == 8
    for path in trainee.output.rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(trainee.output)).read_bytes()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_twenty_times(
    document: Make, trainee: Trainee, faults: Proxy, s3_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = killed_document(document, s3_bucket)
    loop.run(parse(values), tmp_path / "whole", display="quiet")
    expected, total = hashes(tmp_path / "whole"), dict.fromkeys(("kills", "resumes", "runs", "differences"), 0)
    while total["kills"] < 20:
        total["runs"] += 1
        values["spec"]["checkpoint"]["storage"] = f"s3://{s3_bucket}/run-{total['runs']}"
        trainee.file.write_text(json.dumps(values))
        counts = kill_and_resume(trainee, faults, 5, seed=total["runs"])
        total["kills"] += counts["kills"]
        total["resumes"] += counts["resumes"]
        total["differences"] += hashes(values["spec"]["checkpoint"]["storage"]) != expected
    with capsys.disabled():
        print(f"\nS3 soak: {total}, faults injected by the proxy: {faults.injected}")
    assert total["differences"] == 0


def test_a_request_to_stop_waits_for_the_upload(trainee: Trainee, faults: Proxy, s3_bucket: str) -> None:
    asked = nth(1, Fault(rate=1e6, then=lambda: os.kill(trainee.pid, signal.SIGTERM)), within="/step-")
    faults.rule = asked
    trainee.start()
    assert trainee.end() == ExitCode.STOPPED
    log = (trainee.machine / "log").read_text()
    assert "stopped by SIGTERM" in log
    stopped = int(log.split("after iteration ")[1].split()[0])
    found = checkpoint.latest(checkpoint.open_store(f"s3://{s3_bucket}/run"))
    assert found is not None
    assert found.step == stopped
    progress = json.loads((trainee.output / "progress.json").read_text())
    assert (progress["phase"], progress["checkpoint"]["step"]) == ("Stopped", stopped)


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries of a commit, without pauses."""
    monkeypatch.setattr(background, "TRIES", 2)
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


def in_s3(document: Make, bucket: str, **more: Any) -> Any:
    """Four short iterations with a checkpoint after each."""
    return parse(
        document(
            training={"iterations": 4, "promptsPerIteration": 2},
            evaluation={"everyIterations": 0},
            checkpoint={"everyIterations": 1, "storage": f"s3://{bucket}/run", **more},
        )
    )


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize(
    ("fault", "expected", "code", "text"),
    [
        (Fault(507, "InsufficientStorage"), ResourceError, 71, "has no space left or the quota is used up"),
        (Fault(500), UnavailableError, 69, "failed with 500 InternalError after all retries"),
        (Fault(403, "AccessDenied"), ConfigurationError, 78, "these credentials may not write it"),
    ],
    ids=["full", "broken", "forbidden"],
)
def test_a_store_that_fails_for_good_ends_the_run_with_one_sentence(
    document: Make,
    faults: Proxy,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    expected: type[TailorPOError],
    code: int,
    text: str,
) -> None:
    """From the second checkpoint on. The first stays what a resume goes on from."""
    monkeypatch.chdir(tmp_path)
    faults.rule = always(fault, within="/step-0000000")
    first = faults.rule
    faults.rule = lambda method, path: None if "step-00000001" in path else first(method, path)
    with pytest.raises(expected) as caught:
        loop.run(in_s3(document, s3_bucket, maxFailures=2), display="quiet")
    assert caught.value.exit_code == code
    assert str(caught.value).count(text) == 1
    assert "\n" not in str(caught.value)
    progress = json.loads(Path("runs/test/progress.json").read_text())
    assert progress["phase"] == "Failed"
    assert progress["checkpoint"]["step"] == 1
    faults.rule = lambda *_: None
    loop.run(in_s3(document, s3_bucket), display="quiet")
    loop.run(in_s3(document, s3_bucket), tmp_path / "whole", display="quiet")
    found = [checkpoint.latest(checkpoint.open_store(place)) for place in (f"s3://{s3_bucket}/run", tmp_path / "whole")]
    assert found[0] is not None
    assert found[1] is not None
    name = "optimizer.safetensors"
    assert found[0].manifest.objects[name] == found[1].manifest.objects[name]


@pytest.mark.usefixtures("_hasty")
def test_a_run_never_says_that_it_was_stopped_without_a_checkpoint(
    document: Make, faults: Proxy, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = session.Session.checkpoint

    def stopping(self: session.Session) -> None:
        if self.iteration == 2:
            self.world.stop.requested = "SIGTERM"
            faults.rule = always(Fault(500), within="/step-")
        whole(self)

    monkeypatch.setattr(session.Session, "checkpoint", stopping)
    with pytest.raises(UnavailableError, match="failed with 500 InternalError after all retries") as caught:
        loop.run(in_s3(document, s3_bucket, maxFailures=100), display="quiet")
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    progress = json.loads(Path("runs/test/progress.json").read_text())
    assert progress["phase"] == "Failed"
    assert "failed with 500" in progress["message"]


@pytest.mark.usefixtures("_hasty")
def test_results_that_cannot_be_published_are_a_warning_until_the_end(
    document: Make,
    faults: Proxy,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pod's disk goes with the pod: what nobody could fetch is no success, and running again publishes it."""
    monkeypatch.chdir(tmp_path)
    faults.rule = always(Fault(403, "AccessDenied"), within="/output/")
    with pytest.raises(ConfigurationError, match=r"may not write it .* \(after the last iteration\)"):
        loop.run(in_s3(document, s3_bucket), display="quiet")
    assert "metrics.jsonl is not published, it is here alone for now" in caplog.text
    store = checkpoint.open_store(f"s3://{s3_bucket}/run")
    found = checkpoint.latest(store)
    assert found is not None
    assert found.step == 4
    faults.rule = lambda *_: None
    for _ in range(2):  # the second time there is nothing to do
        loop.run(in_s3(document, s3_bucket), display="quiet")
        assert any(name.startswith("attempt-0002/output/adapter/") for name in store.names("attempt-0002/output/"))
        assert not store.names("attempt-0003/")


@pytest.mark.parametrize("what", ["secret", "bucket"])
def test_what_is_wrong_from_the_beginning_is_said_before_anything_is_loaded(
    document: Make, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if what == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        expected = "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY"
    else:
        s3_bucket, expected = "no-such-bucket", "there is no such bucket at 127.0.0.1:"
    with pytest.raises(ConfigurationError) as caught:
        loop.run(in_s3(document, s3_bucket), display="quiet")
    assert str(caught.value).startswith(f"checkpoint storage s3://{s3_bucket}/run: {expected}")


def test_a_server_that_dies_in_an_upload_and_comes_back(
    mortal_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A state of 20 MB; the server is killed at its second part and started again while the stream tries again."""
    from tests.conftest import new_bucket

    bucket = new_bucket(mortal_server.server, monkeypatch)
    back = threading.Thread(target=mortal_server.start)

    def die() -> None:
        mortal_server.kill()
        back.start()

    job = parse(
        {
            "apiVersion": "tailorpo.dev/v1alpha1",
            "kind": "TailorPOJob",
            "metadata": {"name": "test"},
            "spec": {"prompts": {"builtin": "animals"}, "rewards": [{"name": "r"}], "method": {"name": "tailorpo"}},
        }
    )
    with Proxy(mortal_server.server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        run = checkpoint.open_run(checkpoint.open_store(f"s3://{bucket}/run"), job)
        proxy.rule = nth(2, Fault(then=die), within="partNumber")
        failed: list[int] = []
        opened = checkpoint.BackgroundWriter(
            run.begin(None),
            keep=3,
            max_failures=3,
            failed=lambda step, _: failed.append(step),
            sleep=lambda _: back.join(60),
        )
        weights = torch.randn(5 << 20, generator=torch.Generator().manual_seed(0))
        opened.save(10, {"adapter": {"up": weights}}, {})
        opened.close()
        assert failed
        found = run.latest()
    assert found is not None
    assert torch.equal(found.tensors("adapter")["up"], weights)
    back.join()
    left = mortal_server.server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert left == []  # swept with the first pruning
