"""A device on the wire without a replica: the project's own handshake, then bare frames at the least cost."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any, TypeVar

import msgspec

from bench.lean_socket import LeanSocket, Receiver, shake_hands
from twinlock.errors import TwinlockError
from twinlock.ids import Seq, SpaceId
from twinlock.protocol import codec
from twinlock.protocol.client import ClientIdentity, ClientSession, Replied, Welcomed
from twinlock.protocol.frames import LOG_GROWN, Attach, Attached, Notice, Reject

Result = TypeVar("Result")
ACK, ENTRIES = 8, 10
START = Seq(0)
_SPACE_END = 20
"""A frame about a space begins with 4 bytes of array, tag and length, then the space's 16 bytes."""


def now_ms() -> int:
    """Return this machine's clock in ms since 1970."""
    return time.time_ns() // 1_000_000


def tag_of(frame: memoryview) -> int:
    """Return a frame's tag without reading the rest."""
    return frame[1]


def count_of(frame: memoryview) -> int:
    """Return how many acks or entries a frame holds, without reading them."""
    first = frame[_SPACE_END]
    if first & 0xF0 == 0x90:
        return first & 0x0F
    if first == 0xDC:
        return (frame[_SPACE_END + 1] << 8) | frame[_SPACE_END + 2]
    return int.from_bytes(frame[_SPACE_END + 1 : _SPACE_END + 5], "big")


class RawClient:
    """One connection of a device. After the handshake every frame that is no reply goes to `sink`."""

    __slots__ = ("_replies", "_session", "_waiting", "sink", "socket", "welcomed")

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._replies: dict[int, asyncio.Future[Replied]] = {}
        self._waiting: asyncio.Future[Attached] | None = None
        self.welcomed: asyncio.Future[Welcomed] = asyncio.get_running_loop().create_future()
        self.sink: Receiver = lambda frame: None
        self.socket: LeanSocket | None = None

    async def call(self, method: str, params: msgspec.Struct, result: type[Result]) -> Result:
        """Call the server and return its answer."""
        number = self._session.call(method, params)
        answer = self._replies[number] = asyncio.get_running_loop().create_future()
        self._flush()
        replied = await answer
        if replied.error is not None:
            raise replied.error
        return msgspec.msgpack.decode(replied.result, type=result)

    async def attach(self, space: SpaceId, cursor: Seq = START) -> Attached:
        """Ask for a space's entries after a cursor; they go to `sink`."""
        self._waiting = asyncio.get_running_loop().create_future()
        self.send(codec.encode(Attach(space, b"", cursor)))
        return await self._waiting

    def send(self, message: bytes) -> None:
        """Send a message made before."""
        assert self.socket is not None
        self.socket.send(message)

    def close(self) -> None:
        """Drop the connection."""
        if self.socket is not None:
            self.socket.close()

    def receive(self, frame: memoryview) -> None:
        """Take in one message: handshake and replies are dealt with here, the rest goes to `sink`."""
        if self.welcomed.done():
            if frame[1] in (ACK, ENTRIES):
                self.sink(frame)
            else:
                self._on_rare(frame)
            return
        try:
            event = self._session.receive(bytes(frame), now_ms())
        except TwinlockError as exc:
            self.welcomed.set_exception(exc)
            return
        self._flush()
        if isinstance(event, Welcomed):
            self.welcomed.set_result(event)

    def _on_rare(self, frame: memoryview) -> None:
        decoded = codec.decode_server(bytes(frame))
        if isinstance(decoded, Attached) and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(decoded)
            return
        event = self._session.receive(bytes(frame), now_ms())
        if isinstance(event, Replied):
            self._replies.pop(event.call).set_result(event)
        elif isinstance(event, Reject) or (isinstance(event, Notice) and event.code != LOG_GROWN):
            # A refused load measures nothing: the closed connection makes the scenario break down at once.
            print(f"the server answered the load with {event}", file=sys.stderr)
            self.close()

    def lost(self, _: asyncio.Future[None]) -> None:
        """Let whoever waits for an answer know that none will come."""
        waiting: list[asyncio.Future[Any]] = [*self._replies.values()]
        if self._waiting is not None:
            waiting.append(self._waiting)
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError("the connection was closed"))

    def _flush(self) -> None:
        for message in self._session.take_output():
            self.send(message)


async def open_client(port: int, identity: ClientIdentity, server_id: bytes | None = None) -> RawClient:
    """Connect and say hello as a device, or as nobody to sign up."""
    client = RawClient(ClientSession(identity, f"ws://127.0.0.1:{port}", server_id, os.urandom))
    client.socket = LeanSocket(client.receive)
    await shake_hands(client.socket, port)
    waiting: set[asyncio.Future[Any]] = {client.welcomed, client.socket.closed}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not client.welcomed.done():
        raise ConnectionError("the server closed the connection before its welcome")
    await client.welcomed
    client.socket.closed.add_done_callback(client.lost)
    return client
