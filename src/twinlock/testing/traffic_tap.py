"""A wire that can be listened to and cut: a TCP proxy that records what passes in both directions.

What a client sends over a WebSocket is masked, so a search of the raw bytes could never find anything: `messages` gives
what was inside the frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import msgspec

CHUNK_BYTES = 1 << 16
LOOPBACK = "127.0.0.1"
_HEAD_END = b"\r\n\r\n"
_DATA_OPCODES = frozenset({0, 1, 2})


class Recording:
    """The bytes of one connection, as they passed."""

    __slots__ = ("to_client", "to_server")

    def __init__(self) -> None:
        self.to_server = bytearray()
        self.to_client = bytearray()

    def messages_to_server(self) -> list[bytes]:
        """Return the messages that the client sent."""
        return messages(bytes(self.to_server))

    def messages_to_client(self) -> list[bytes]:
        """Return the messages that the server sent."""
        return messages(bytes(self.to_client))


class TrafficTap:
    """Listens on a port of its own and passes connections on to a server, until it is cut or stopped."""

    def __init__(self, server_port: int, port: int) -> None:
        self.port = port
        self.recordings: list[Recording] = []
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def url(self) -> str:
        """The address that a client dials to be recorded."""
        return f"ws://{LOOPBACK}:{self.port}"

    async def plug_in(self) -> None:
        """Let connections pass."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._pass_on, LOOPBACK, self.port)

    def cut(self) -> None:
        """Break every connection and let no new one pass; what was on its way is lost."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def __aenter__(self) -> TrafficTap:
        await self.plug_in()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await self._idle.wait()

    def recorded(self) -> dict[str, bytes]:
        """Return everything that passed, by a name for each part: raw, and as the messages in it."""
        found: dict[str, bytes] = {}
        for number, recording in enumerate(self.recordings):
            found[f"wire {number} to server, raw"] = bytes(recording.to_server)
            found[f"wire {number} to client, raw"] = bytes(recording.to_client)
            found[f"wire {number} to server"] = b"".join(recording.messages_to_server())
            found[f"wire {number} to client"] = b"".join(recording.messages_to_client())
        return found

    async def _pass_on(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self._server_port)
        except OSError:
            client_writer.transport.abort()
            return
        recording = Recording()
        self.recordings.append(recording)
        self._open |= {client_writer, server_writer}
        self._idle.clear()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(client_reader, server_writer, recording.to_server))
                group.create_task(_pump(server_reader, client_writer, recording.to_client))
        finally:
            self._open -= {client_writer, server_writer}
            if not self._open:
                self._idle.set()


class _Frame(msgspec.Struct, frozen=True):
    opcode: int
    payload: bytes
    end: int


def messages(stream: bytes) -> list[bytes]:
    """Return the data messages of one direction of a WebSocket connection, unmasked."""
    at = stream.find(_HEAD_END)
    found: list[bytes] = []
    if at < 0:
        return found
    at += len(_HEAD_END)
    while (frame := _frame(stream, at)) is not None:
        if frame.opcode == 0 and found:
            found[-1] += frame.payload
        elif frame.opcode in _DATA_OPCODES:
            found.append(frame.payload)
        at = frame.end
    return found


def free_port() -> int:
    """Return a port of the loopback address that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _frame(stream: bytes, at: int) -> _Frame | None:
    """Read one frame; None when the stream ends before it does."""
    if at + 2 > len(stream):
        return None
    opcode, is_masked, size = stream[at] & 0x0F, bool(stream[at + 1] & 0x80), stream[at + 1] & 0x7F
    at += 2
    if size >= 126:
        length_bytes = 2 if size == 126 else 8
        size = int.from_bytes(stream[at : at + length_bytes], "big")
        at += length_bytes
    mask = stream[at : at + 4] if is_masked else b""
    at += len(mask)
    if at + size > len(stream):
        return None
    payload = stream[at : at + size]
    return _Frame(opcode, _unmask(payload, mask) if mask else payload, at + size)


def _unmask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            record += data
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
