"""The network in which a cluster lives: a namespace of its own, with a bridge between what is in it."""

import itertools
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.cluster.control_plane import reserved_port
from tests.cluster.processes import Family, Server
from tests.cluster.real.programs import tool
from tests.cluster.waiting import until

BRIDGE = "tests0"
GATEWAY = "10.77.0.1"  # on the bridge: where nodes and pods reach what runs beside them
PODS = "10.244.0.0/16"
PREFIX = 24  # bits that all addresses on the bridge have in common
MACHINE = "/proc/self/ns/net"  # this machine's network, as long as nobody leaves it


def node_address(number: int) -> str:
    return f"10.77.0.{10 + number}"


def pod_addresses(number: int) -> str:
    """The subnet of the pods of a node."""
    return f"10.244.{number}.0/24"


class Network:
    """A network namespace, kept by a process that does nothing; it goes with the last process in it."""

    def __init__(self, family: Family, logs: Path) -> None:
        self._family = family
        self._logs = logs
        self._numbers = itertools.count(1)
        self._exposed = set[int]()
        self._forwards = ExitStack()
        self._holder = Server([tool("unshare"), "--net", tool("sleep"), "infinity"], logs / "network.log", family)

    def start(self) -> None:
        self._holder.start()
        until(lambda: is_elsewhere(self._holder, Path(MACHINE)), "there is a network namespace")
        # A fixed address: a bridge without one changes its own when a node comes or goes.
        self.ip(
            "link set lo up",
            f"link add {BRIDGE} address 02:00:0a:4d:00:01 type bridge",
            f"addr add {GATEWAY}/{PREFIX} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )

    def stop(self) -> None:
        self._forwards.close()
        self._holder.stop()

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/ns/net")

    @property
    def enter(self) -> list[str]:
        """What stands before a command to run it in this network; the pid stays the command's."""
        return within(self._holder.pid)

    def ip(self, *commands: str) -> None:
        """Runs commands of `ip` in this network."""
        ip(self._holder.pid, *commands)

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Like subprocess.run, with text captured and exit code checked unless `options` say otherwise."""
        given: dict[str, Any] = {"check": True, "capture_output": True, "text": True} | options
        done: subprocess.CompletedProcess[str] = subprocess.run([*self.enter, *command], **given)
        return done

    def popen(self, *command: str | Path, **options: Any) -> "subprocess.Popen[Any]":
        """Like subprocess.Popen; the process is killed when the thread that started it ends."""
        return subprocess.Popen([*self.enter, tool("setpriv"), "--pdeathsig=KILL", *command], **options)

    def expose(self, port: int) -> str:
        """Makes a port of this machine's 127.0.0.1 reachable for pods; answers under which host and port."""
        if port not in self._exposed:
            self._relay(str(self.path), f"{GATEWAY}:{port}", MACHINE, f"127.0.0.1:{port}")
            self._exposed.add(port)
        return f"{GATEWAY}:{port}"

    def reach(self, host: str, port: int) -> str:
        """Makes an address of this network reachable for this machine; answers under which host and port."""
        own = self._forwards.enter_context(reserved_port())
        self.forward(own, f"{host}:{port}")
        return f"127.0.0.1:{own}"

    def forward(self, port: int, target: str) -> None:
        """Carries what comes to that port of 127.0.0.1 on this machine to an address of this network."""
        self._relay(MACHINE, f"127.0.0.1:{port}", str(self.path), target)

    def _relay(self, near: str, listen: str, far: str, target: str) -> None:
        script = Path(__file__).with_name("relay.py")
        log = self._logs / f"relay-{next(self._numbers)}.log"
        relay = Server([sys.executable, "-I", str(script), near, listen, far, target], log, self._family, log.stem)
        relay.start()
        self._forwards.callback(relay.stop)

        def listens() -> bool:
            relay.check()
            return "listening" in log.read_text()

        until(listens, f"{listen} leads to {target}")


def is_elsewhere(server: Server, *networks: Path) -> bool:
    """Whether a process has entered a network that is none of these; raises ServerError if it ended."""
    server.check()
    own = Path(f"/proc/{server.pid}/ns/net")
    return own.exists() and not any(own.samefile(each) for each in networks)


def within(pid: int) -> list[str]:
    """What stands before a command to run it in the network of a process."""
    return [tool("nsenter"), f"--net=/proc/{pid}/ns/net", "--"]


def ip(pid: int, *commands: str) -> None:
    """Runs commands of `ip` in the network of a process."""
    lines = "\n".join(commands)
    subprocess.run([*within(pid), tool("ip"), "-batch", "-"], input=lines, check=True, text=True)
