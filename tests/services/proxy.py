"""A proxy that breaks things on demand: it stands before a real server, and counts what it broke.

One connection carries one request. Heads are passed on as they are but for Connection, which no
signature covers; so the server still checks signatures. Runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal[
    "status",  # answer with ``status`` and ``headers``; the server is not asked
    "reset_request",  # reset after ``at`` bytes of the request's body
    "reset_response",  # reset after ``at`` bytes of the response's body
    "lost_reply",  # the server does it; the answer never comes
    "stall_request",  # stop reading after ``at`` bytes of the request's body
    "stall",  # the server does it; the connection then stands still
    "slow",  # both directions at ``bytes_per_second``
    "flip_request",  # change the byte at ``at`` of the request's body
    "flip_response",  # change the byte at ``at`` of the response's body
    "truncate",  # close as if all were well after ``at`` bytes of the response's body
    "strip",  # remove the request header ``header``
]
BLOCK_BYTES = 64 << 10
HOST = "127.0.0.1"


@dataclass(eq=False)
class Fault:
    """One thing to break, ``times`` times, in the requests that match."""

    kind: Kind
    method: str = ".*"
    path: str = ".*"
    times: float = 1
    at: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    header: str = ""
    bytes_per_second: float = 1e6
    fired: int = 0


@dataclass
class Request:
    """What was asked: (method, path with query), and its head."""

    method: str
    path: str
    head: list[bytes]
    body_bytes: int

    def header(self, name: str) -> str | None:
        """A header's value."""
        for line in self.head[1:]:
            key, _, value = line.partition(b":")
            if key.decode().lower() == name:
                return value.strip().decode()
        return None


class FaultProxy:
    """Between a client and ``upstream`` (``http://host:port``). Faults may change at any time."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.heads: list[Request] = []
        self.url = ""
        self._stopping = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[object] = set()  # asyncio itself keeps only weak references

    def add(self, kind: Kind, **options: object) -> Fault:
        """Break the next matching request so; look at ``fired`` afterwards."""
        fault = Fault(kind, **options)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """Break nothing more, and forget what was asked."""
        self.faults, self.requests, self.heads = [], [], []
        stopping, self._stopping = self._stopping, asyncio.Event()
        self._loop.call_soon_threadsafe(stopping.set)  # what stands still ends now

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultProxy]:
        """Listen on a free port of this machine."""
        loop = self._loop
        server = loop.run_until_complete(asyncio.start_server(self._serve, HOST, 0))
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://{HOST}:{port}"
        thread = threading.Thread(target=loop.run_forever, name="fault-proxy", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(_stop(server), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            request = await _read_request(reader)
            if request is not None:
                self.requests.append((request.method, request.path))
                self.heads.append(request)
                await self._answer(request, reader, writer, self._fault_for(request))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:  # the end; asyncio's own callback cannot take it (3.11)
            pass
        finally:
            await _closed(writer)
            self._tasks.discard(task)

    def _fault_for(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if (
                fault.fired < fault.times
                and re.fullmatch(fault.method, request.method)
                and re.search(fault.path, request.path)
                and (fault.kind != "strip" or request.header(fault.header.lower()))
                and (fault.kind not in ("reset_request", "stall_request", "flip_request")
                     or request.body_bytes > fault.at)
            ):  # fmt: skip
                fault.fired += 1
                return fault
        return None

    async def _answer(
        self,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: Fault | None,
    ) -> None:
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            lines = [f"HTTP/1.1 {fault.status} Fault", "Content-Length: 0", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in fault.headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            await writer.drain()
            return
        up_reader, up_writer = await asyncio.open_connection(*self.upstream)
        try:
            up_writer.write(_head(request.head, fault.header if fault else ""))
            rate = fault.bytes_per_second if fault and kind == "slow" else None
            early = await self._send_body(request, reader, writer, up_reader, up_writer, fault)
            if early is False:
                if kind == "stall_request":
                    await self._stopping.wait()
                _reset(writer)
                return
            if early is True:
                early = await _read_response(up_reader, request.method)
            head, length = early
            if kind in ("lost_reply", "stall"):
                await up_reader.read()
                if kind == "stall":
                    await reader.read()  # the client hangs up
                _reset(writer)
                return
            writer.write(head)
            at = fault.at if fault and kind in ("reset_response", "truncate") else None
            flips = fault.at if fault and kind == "flip_response" else None
            whole = await _pass(up_reader, writer, length, kind, at if at is not None else flips,
                                rate)  # fmt: skip
            if not whole and kind == "reset_response":
                await asyncio.sleep(0.05)  # what was sent arrives before the reset
                _reset(writer)
        finally:
            await _closed(up_writer)

    async def _send_body(
        self,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
        fault: Fault | None,
    ) -> Response | bool:
        """Pass on the request's body: True; False if a fault cut it; or an answer that came first.

        A server may refuse by the head alone, and then reads no body.
        """
        if (request.header("expect") or "").lower() == "100-continue":
            with contextlib.suppress(asyncio.TimeoutError):  # some servers wait for the body
                answer = await asyncio.wait_for(_read_response(up_reader, request.method, 100), 1)
                if not answer[0].startswith(b"HTTP/1.1 100"):
                    return answer
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        at = fault.at if fault and fault.kind.endswith("_request") else None
        rate = fault.bytes_per_second if fault and fault.kind == "slow" else None
        kind = fault.kind if fault else ""
        try:
            return await _pass(reader, up_writer, request.body_bytes, kind, at, rate)
        except ConnectionError:
            return await _read_response(up_reader, request.method)


Response = tuple[bytes, int | None]


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head[:-4].split(b"\r\n")
    method, path, _ = lines[0].decode().split(" ", 2)
    request = Request(method, path, lines, 0)
    if request.header("transfer-encoding"):
        raise ConnectionError("the proxy passes on bodies of a known length only")
    request.body_bytes = int(request.header("content-length") or 0)
    return request


async def _read_response(
    reader: asyncio.StreamReader, method: str, first_status: int = 200
) -> Response:
    """(head as it is passed on, body length or None: until the server closes)."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head[:-4].split(b"\r\n")
        status = int(lines[0].split()[1])
        if status >= first_status:
            break
    length = None
    for line in lines[1:]:
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    if method == "HEAD" or status in (204, 304):
        length = 0
    return _head(lines), length


def _head(lines: list[bytes], strip: str = "") -> bytes:
    dropped = {b"connection", strip.lower().encode()}
    kept = [line for line in lines[1:] if line.partition(b":")[0].lower() not in dropped]
    return b"\r\n".join([lines[0], *kept, b"Connection: close", b"", b""])


async def _pass(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    length: int | None,
    kind: str,
    at: int | None,
    bytes_per_second: float | None,
) -> bool:
    """Pass on a body; False if it was cut at ``at``."""
    passed = 0
    while length is None or passed < length:
        block = await reader.read(
            BLOCK_BYTES if length is None else min(BLOCK_BYTES, length - passed)
        )
        if not block:
            if length is not None:  # whoever sends has gone: the other side is let go too
                raise asyncio.IncompleteReadError(b"", length - passed)
            break
        if at is not None and passed <= at < passed + len(block):
            if kind.startswith("flip"):
                changed = bytearray(block)
                changed[at - passed] ^= 1
                block = bytes(changed)
            else:
                writer.write(block[: at - passed])
                await writer.drain()
                return False
        writer.write(block)
        await writer.drain()
        passed += len(block)
        if bytes_per_second:
            await asyncio.sleep(len(block) / bytes_per_second)
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN: what is in flight is lost."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(Exception):
        await writer.wait_closed()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    while tasks := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
