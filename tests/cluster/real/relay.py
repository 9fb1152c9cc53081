"""Carries connections from one network namespace to another: a program of its own, started by network.py.

Its arguments are the namespace and address to listen on, and the namespace and address to connect to.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000
BLOCK = 1 << 16  # bytes


def enter(namespace: str) -> None:
    """Sockets that this thread makes from now on belong to that network (os.setns is there from Python 3.12)."""
    with open(namespace) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)


def listener(address: str) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # with the socket that reserves the port
    host, port = address.split(":")
    made.bind((host, int(port)))
    made.listen(128)
    return made


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Carries one direction to its end, which the other side is told."""
    while data := await source.read(BLOCK):
        target.write(data)
        await target.drain()
    target.write_eof()


async def carry(connect: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, port = connect.split(":")
    with contextlib.suppress(OSError):
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            try:
                await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
            finally:
                far_writer.close()
        finally:
            writer.close()


async def main() -> None:
    near, listen, far, connect = sys.argv[1:]
    namespaces = [os.open(each, os.O_RDONLY) for each in (near, far)]  # /proc/self changes with neither
    enter(f"/proc/self/fd/{namespaces[0]}")
    accepting = listener(listen)
    enter(f"/proc/self/fd/{namespaces[1]}")
    server = await asyncio.start_server(lambda *streams: carry(connect, *streams), sock=accepting)
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
