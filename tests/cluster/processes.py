"""Child processes that end with their owner, even if it is killed."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

LOG_TAIL = 3000  # characters


class ServerError(Exception):
    """A server ended by itself; the text has the end of its log."""


class Family:
    """Children that end with this process; so do the folder that they share, and cgroups."""

    def __init__(self, folder: Path, cgroups: Iterable[Path] = ()) -> None:
        self.folder = folder
        watchdog = Path(__file__).with_name("watchdog.py")
        # A session of its own: Ctrl-C at the terminal must not reach it before its owner is done.
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", str(watchdog), str(folder), *map(str, cgroups)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def born(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def buried(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def end(self) -> None:
        """Kills what still runs and removes the folder."""
        self._pipe.close()
        self._watchdog.wait()

    @property
    def _pipe(self) -> IO[str]:
        assert self._watchdog.stdin is not None
        return self._watchdog.stdin

    def _tell(self, line: str) -> None:
        self._pipe.write(line)
        self._pipe.flush()


class Server:
    """One program that runs until it is stopped, and can be started again with what it left in its folder."""

    def __init__(self, command: Sequence[str], log: Path, family: Family, name: str = "") -> None:
        self.name = name or Path(command[0]).name
        self.log = log
        self._command = list(command)
        self._family = family
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._exit_code() is None

    def start(self) -> None:
        assert not self.running, f"{self.name} is running"
        # Nothing of the user's environment: no proxy, no Go or Kubernetes setting.
        environment = {"HOME": str(self._family.folder), "TMPDIR": str(self._family.folder)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._family.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._family.born(self._process.pid)

    def stop(self) -> None:
        """Kills it; nothing that it holds is worth a graceful end."""
        if self.running:
            assert self._process is not None
            self._process.kill()
            self._process.wait()
            self._family.buried(self._process.pid)
        self._process = None

    def check(self) -> None:
        """Raises ServerError if it ended by itself."""
        if self._process is not None and self._exit_code() is not None:
            tail = self.log.read_text(errors="replace")[-LOG_TAIL:]
            raise ServerError(f"{self.name} ended with code {self._process.returncode}; see {self.log}\n{tail}")

    def _exit_code(self) -> int | None:
        """None while it runs. A pid is free for others once its end was seen, so the watchdog must know."""
        assert self._process is not None
        if self._process.returncode is None and self._process.poll() is not None:
            self._family.buried(self._process.pid)
        return self._process.returncode
