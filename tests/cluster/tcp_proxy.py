"""A proxy of raw bytes before an API server: TLS passes through, and connections fare as in a bad network."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

CHUNK = 65_536
RESET = struct.pack("ii", 1, 0)  # linger for 0 seconds: the kernel closes with RST


class Way(Enum):
    """How a new connection fares."""

    THROUGH = "through"
    SILENT = "silent"
    REFUSED = "refused"


@dataclass(eq=False)
class _Link:
    """A client's connection and ours to the server. lost: its bytes are dropped, without an error for either side."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    lost: bool = False


class TcpProxy:
    """For one user, by the kubeconfig `kubeconfig`. What a method does has been done when it returns."""

    def __init__(self, user: Path, folder: Path) -> None:
        """user: a kubeconfig of `kubeconfig.write`."""
        self.kubeconfig = folder / "far-away.kubeconfig"
        self._user: dict[str, Any] = json.loads(user.read_text())
        self._address = urlsplit(self._user["clusters"][0]["cluster"]["server"])
        self._links: set[_Link] = set()
        self._new = Way.THROUGH
        self._pumping: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="TCP proxy", daemon=True)

    # Faults

    def silence(self, *, new: bool) -> None:
        """Bytes vanish in both directions on all connections there are, and nothing is closed; on new ones too?"""
        self._do(self._silence(Way.SILENT if new else Way.THROUGH))

    def half_open(self) -> None:
        """Closes the server's ends, without an error for the client."""
        self._do(self._silence(Way.THROUGH, close=True))

    def reset(self) -> None:
        """Breaks off all connections, and new ones as soon as they are made."""
        self._do(self._reset())

    def hold(self) -> None:
        """Bytes wait, of new connections too, and flow on afterwards."""
        self._do(self._hold())

    def heal(self) -> None:
        """New connections are as usual, and what waits flows on. TLS survives no gap: what is lost stays lost."""
        self._do(self._heal())

    # With and without

    def __enter__(self) -> Self:
        self._thread.start()
        port = self._do(self._start())
        self._user["clusters"][0]["cluster"]["server"] = f"{self._address.scheme}://127.0.0.1:{port}"
        self.kubeconfig.write_text(json.dumps(self._user))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _start(self) -> int:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._listening.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        self._listening.close()
        for task in self._pumping:
            task.cancel()
        await asyncio.gather(*self._pumping, return_exceptions=True)
        for link in list(self._links):
            self._break(link)

    async def _silence(self, new: Way, *, close: bool = False) -> None:
        self._new = new
        for link in self._links:
            link.lost = True
            if close and link.far is not None:
                link.far.close()

    async def _reset(self) -> None:
        self._new = Way.REFUSED
        for link in list(self._links):
            self._break(link)

    async def _hold(self) -> None:
        self._flowing.clear()

    async def _heal(self) -> None:
        self._new = Way.THROUGH
        self._flowing.set()

    async def _serve(self, requests: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        link = _Link(near, lost=self._new is Way.SILENT)
        self._links.add(link)
        if self._new is Way.REFUSED:
            self._break(link)
            return
        pumps = [self._pump(link, requests)]
        if not link.lost:
            try:
                answers, link.far = await asyncio.open_connection(self._address.hostname, self._address.port)
            except OSError:  # it is down
                self._break(link)
                return
            pumps.append(self._pump(link, answers, near))
        for pump in pumps:
            task = asyncio.create_task(pump)
            self._pumping.add(task)
            task.add_done_callback(self._pumping.discard)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None = None
    ) -> None:
        """One direction, until its end. writer: the client; else the server."""
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flowing.wait()
                if not link.lost and (to := writer or link.far) is not None:
                    to.write(data)
                    await to.drain()
        if not link.lost:
            self._links.discard(link)
        for end in (link.near, link.far):
            if end is not None and (not link.lost or (end is link.near and writer is None)):
                end.close()

    def _break(self, link: _Link) -> None:
        """With RST on both sides."""
        self._links.discard(link)
        for end in (link.near, link.far):
            if end is not None and not end.transport.is_closing():
                with suppress(OSError):
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.transport.abort()
