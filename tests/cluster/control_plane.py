"""A Kubernetes control plane of real servers on loopback, as an ordinary user."""

import http.client
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.cluster import build, kubeconfig
from tests.cluster.api import Cluster
from tests.cluster.audit import AuditLog
from tests.cluster.certificates import Authority, KeyPair
from tests.cluster.kubeconfig import Endpoint
from tests.cluster.processes import Family, Server
from tests.cluster.servers import Options, commands
from tests.cluster.waiting import until

START_SECONDS = 90.0
MEMORY_NEEDED = 1 << 30  # bytes that must be free in a tmpfs for etcd's files to be put there


class ControlPlane(Cluster):
    """A running control plane: a `Cluster` whose servers, users and requests are at hand."""

    def __init__(
        self, family: Family, logs: Path, port: int, authority: Authority, options: Options, enter: Sequence[str] = ()
    ) -> None:
        """Not started yet; `enter` stands before the command of each server."""
        folder = family.folder
        made = commands(build.binaries(), folder, port, authority, logs / "audit.jsonl", options)
        endpoint = Endpoint(f"https://127.0.0.1:{port}", authority.certificate)
        self.logs = logs
        self.endpoint = endpoint
        self.servers = {
            name: Server([*enter, *each], logs / f"{name}.log", family, name) for name, each in made.items()
        }
        self.audit = AuditLog(logs / "audit.jsonl", self._get)
        self._authority = authority
        administrator = authority.client("admin", ["system:masters"])
        self._tls = _tls(endpoint, administrator, folder)
        super().__init__(kubeconfig.write(folder / "admin.kubeconfig", endpoint, administrator), folder)

    def user(self, name: str, groups: Iterable[str] = ()) -> Path:
        """A kubeconfig for a user and groups of any names, by client certificate."""
        path = self.folder / f"user-{name.replace(':', '-')}.kubeconfig"
        return kubeconfig.write(path, self.endpoint, self._authority.client(name, groups))

    def check(self) -> None:
        """Raises ServerError if a server ended by itself."""
        for server in self.servers.values():
            server.check()

    def serves(self) -> bool:
        """Whether the API server is ready; raises ServerError if a server ended by itself."""
        self.check()
        return self._get("/readyz") == http.HTTPStatus.OK

    def ready(self) -> bool:
        """Whether pods can be made in the namespace `default`: the controllers work."""
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        return self.serves() and self._get(account) == http.HTTPStatus.OK

    def start(self) -> None:
        """Starts all servers and waits until they are ready."""
        etcd, api_server, *clients = self.servers.values()
        for server in (etcd, api_server):
            server.start()
        until(self.serves, f"the API server is ready (logs: {self.logs})", START_SECONDS)
        for server in clients:  # these end if the API server takes long to start
            server.start()
        until(self.ready, f"the control plane is ready (logs: {self.logs})", START_SECONDS)

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop()

    def _get(self, path: str) -> int:
        """The status of a GET as administrator; 0 without an answer."""
        host, port = self.endpoint.url.removeprefix("https://").split(":")
        connection = http.client.HTTPSConnection(host, int(port), context=self._tls, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


@contextmanager
def control_plane(logs: Path | None = None, options: Options | None = None) -> Iterator[ControlPlane]:
    """etcd, API server, controller manager and scheduler until the end of the `with`; any number at once.

    They end with this process, however it ends, and leave nothing but their logs: in `logs`, else in a new
    temporary folder. Builds the servers first where that has not been done.
    """
    build.binaries()  # before there is anything to clean up
    with ExitStack() as stack:
        family = Family(new_folder())
        stack.callback(family.end)
        port = stack.enter_context(reserved_port())
        plane = ControlPlane(family, logs or new_logs(), port, Authority(), options or Options())
        stack.callback(plane.stop)
        plane.start()
        yield plane


def new_folder() -> Path:
    """A folder for the files of a cluster: in memory if there is enough."""
    return Path(tempfile.mkdtemp(prefix="tailorpo-cluster-", dir=_memory()))


def new_logs() -> Path:
    return Path(tempfile.mkdtemp(prefix="tailorpo-cluster-logs-"))


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free port of 127.0.0.1 that no other process gets, even while the API server is down.

    The socket is bound and does not listen; SO_REUSEPORT lets the API server of the same user listen there.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def _tls(endpoint: Endpoint, user: KeyPair, folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=endpoint.authority.decode())
    pair = folder / "administrator.pem"
    pair.write_bytes(user.certificate + user.key)
    context.load_cert_chain(pair)
    return context


def _memory() -> Path | None:
    """The tmpfs of this machine if it has enough space, otherwise None: etcd does not wait for a disk there."""
    shared = Path("/dev/shm")
    try:
        return shared if shutil.disk_usage(shared).free >= MEMORY_NEEDED else None
    except OSError:
        return None
