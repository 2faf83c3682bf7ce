"""The sync socket: what uvicorn hands an upgraded connection to. One small object a connection, no task, no queue.

What uvicorn's parser hands over is answered by `handshake`; what follows is read by `framing`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import structlog

from twinlock.errors import (
    DrainingError,
    HelloTimeoutError,
    InternalError,
    LimitExceededError,
    OverloadedError,
    TwinlockError,
)
from twinlock.protocol.codec import decode_client, encode
from twinlock.protocol.frames import Goaway, Notice, Push, ServerFrame
from twinlock.protocol.limits import PUSH_BYTES_MAX, READER_BUFFER_BYTES_MAX
from twinlock.protocol.server import ServerSession, Stage
from twinlock.server.framing import (
    CloseCode,
    FramingError,
    MessageReader,
    Opcode,
    binary_message,
    close_message,
    control_message,
)
from twinlock.server.handshake import HandshakeError, Upgrade, accept_upgrade, parse_upgrade, refusal
from twinlock.server.heartbeat import Beating, Heartbeat
from twinlock.server.metrics import Metrics
from twinlock.server.sequencer import Author
from twinlock.server.session import NONCE_BYTES, Dispatcher
from twinlock.server.settings import Settings

logger = structlog.get_logger(__name__)

SYNC_PATH = "/sync"
UNSETTLED_BYTES_MAX = 2 * PUSH_BYTES_MAX
"""Pushed bytes of one connection that wait for the disk; above it nothing more is read from that connection."""

PING = control_message(Opcode.PING)
_CLOSE_CODES: dict[type[TwinlockError], CloseCode] = {
    LimitExceededError: CloseCode.TOO_BIG,
    OverloadedError: CloseCode.TRY_AGAIN_LATER,
    DrainingError: CloseCode.TRY_AGAIN_LATER,
    InternalError: CloseCode.INTERNAL,
}


class SyncSocket:
    """Makes a connection for every upgrade; this is what uvicorn calls."""

    __slots__ = ("_browser_origins", "_settings", "dispatcher", "heartbeat", "is_draining", "metrics", "now_ms")

    def __init__(
        self,
        settings: Settings,
        origins: frozenset[str],
        dispatcher: Dispatcher,
        heartbeat: Heartbeat,
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._settings = settings
        # A page that this server's own address served may connect as well.
        own = {origin.replace("ws", "http", 1) for origin in origins}
        self._browser_origins = own | {origin.rstrip("/") for origin in settings.browser_origins}
        self.now_ms = now_ms
        self.dispatcher = dispatcher
        self.heartbeat = heartbeat
        self.metrics = metrics
        self.is_draining = False

    def __call__(self, **_: object) -> Connection:
        """Return the protocol for one upgraded connection."""
        return Connection(self)

    def admit(self, upgrade: Upgrade) -> bytes:
        """Return the answer that accepts an upgrade.

        Raises:
            HandshakeError: it is refused.
        """
        if upgrade.path != SYNC_PATH:
            raise HandshakeError(HTTPStatus.NOT_FOUND, f"The sync socket is at {SYNC_PATH}.")
        # A browser's page always names its origin; programs name none.
        if not all(origin in self._browser_origins for origin in upgrade.headers.get("origin", ())):
            raise HandshakeError(HTTPStatus.FORBIDDEN, "Pages of this origin may not connect.")
        if self.is_draining or len(self.heartbeat) >= self._settings.connections_max:
            raise HandshakeError(HTTPStatus.SERVICE_UNAVAILABLE, "No more connections are taken.", "Retry-After: 5")
        return accept_upgrade(upgrade)

    def address_of(self, upgrade: Upgrade, transport: asyncio.Transport) -> str:
        """Return where a client comes from: behind a proxy, what that proxy says."""
        hops = upgrade.headers.get("x-forwarded-for")
        if hops and self._settings.behind_proxy:
            # Only the last entry was written by the proxy that is trusted.
            return hops[-1].split(",")[-1].strip()[:64]
        peer = transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""


class Connection(asyncio.Protocol, Beating):
    """One sync connection. Idle it is this object, its session and its transport."""

    __slots__ = (
        "_buffered_before",
        "_is_alive",
        "_is_closing",
        "_is_shaken",
        "_reader",
        "_socket",
        "_transport",
        "_unsettled_bytes",
    )

    def __init__(self, socket: SyncSocket) -> None:
        self._socket = socket
        self._transport: asyncio.Transport | None = None
        self._reader = MessageReader()
        self._is_shaken = False
        self._is_alive = True
        self._is_closing = False
        self._unsettled_bytes = 0
        self._buffered_before = 0
        self.paused = False
        self.address = ""
        self.author: Author | None = None

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the request that asked for the upgrade comes as the first data."""
        # uvloop's transports behave as asyncio's without being derived from them.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read every message that is complete and act on it."""
        if not self._is_shaken:
            self._shake_hands(data)
            return
        self._is_alive = True
        metrics = self._socket.metrics
        metrics.bytes_in.inc(len(data))
        try:
            messages = self._reader.feed(data)
        except FramingError as error:
            self._close(error.code, error.reason)
            return
        metrics.frames_in.inc(len(messages))
        for opcode, payload in messages:
            if self._is_closing:
                self._on_message_while_closing(opcode)
            elif opcode == Opcode.BINARY:
                self._on_binary(payload)
            else:
                self._on_control(opcode, payload)

    def eof_received(self) -> bool:
        """Close: a half-open connection is of no use."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._transport = None
        self._is_closing = True
        self._socket.heartbeat.closed(self)
        if self._is_shaken:
            self._socket.dispatcher.gone(self)

    def pause_writing(self) -> None:
        """Deliver nothing more until the buffer has emptied."""
        self.paused = True
        if self._is_shaken:
            self._socket.dispatcher.paused(self)

    def resume_writing(self) -> None:
        """Go on delivering."""
        self.paused = False
        if self._is_shaken and not self._is_closing:
            self._socket.dispatcher.resumed(self)

    # What the server calls

    def write(self, message: bytes) -> None:
        """Send a message that was built already; after the end it goes nowhere."""
        transport = self._transport
        if transport is not None and not self._is_closing:
            transport.write(message)

    def send(self, frame: ServerFrame) -> None:
        """Send one frame."""
        self.write(binary_message(encode(frame)))

    def settle(self, pushed_bytes: int) -> None:
        """Note that a push was answered in full."""
        self.session.settle_push()
        before = self._unsettled_bytes
        self._unsettled_bytes = before - pushed_bytes
        if before > UNSETTLED_BYTES_MAX >= self._unsettled_bytes and self._transport is not None:
            self._transport.resume_reading()

    def refuse(self, error: TwinlockError) -> None:
        """Tell why, and close."""
        self.send(Notice(error.code, b"", error.detail, error.retry_after_ms))
        self._close(_CLOSE_CODES.get(type(error), CloseCode.POLICY), error.code)

    def go_away(self, retry_after_ms: int) -> None:
        """Say that the server is going down; what is being committed is still answered."""
        self.send(Goaway(retry_after_ms))

    def close_drained(self) -> None:
        """Close after everything was answered."""
        self._close(CloseCode.GOING_AWAY, DrainingError.code)

    # What the timer calls

    def beat(self) -> None:
        """Ping the other side, or give it up if nothing came, and nothing was taken, since the last time."""
        transport = self._transport
        if transport is None:
            return
        buffered = transport.get_write_buffer_size()
        takes_data = buffered < self._buffered_before
        self._buffered_before = buffered
        if not self._is_alive and not takes_data:
            self._socket.metrics.closed("ping_timeout")
            self.abort()
            return
        self._is_alive = False
        self.write(PING)

    def hello_is_late(self) -> None:
        """Close if no hello came in time."""
        if self.session.stage is Stage.CHALLENGED:
            self.refuse(HelloTimeoutError())

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # Inside

    def _shake_hands(self, request: bytes) -> None:
        transport, socket = self._transport, self._socket
        assert transport is not None
        self._is_shaken = True
        try:
            upgrade = parse_upgrade(request)
            answer = socket.admit(upgrade)
        except HandshakeError as error:
            socket.metrics.handshakes_refused.inc()
            self.session = ServerSession(b"", 0)
            self._is_closing = True
            transport.write(refusal(error))
            transport.close()
            return
        self.address = socket.address_of(upgrade, transport)
        transport.set_write_buffer_limits(READER_BUFFER_BYTES_MAX, READER_BUFFER_BYTES_MAX // 4)
        nonce = os.urandom(NONCE_BYTES)
        self.session = ServerSession(nonce, socket.now_ms())
        socket.metrics.handshakes.inc()
        socket.heartbeat.opened(self)
        transport.write(answer + binary_message(encode(socket.dispatcher.challenge(nonce))))

    def _on_binary(self, payload: bytes) -> None:
        try:
            frame = decode_client(payload)
            if type(frame) is Push:
                self._count_push(frame)
            self._socket.dispatcher.handle(self, frame)
        except TwinlockError as error:
            self.refuse(error)
        except Exception as exc:
            logger.exception("frame failed", error=type(exc).__name__)
            self.refuse(InternalError())

    def _count_push(self, push: Push) -> None:
        before = self._unsettled_bytes
        self._unsettled_bytes = before + sum(map(len, push.envelopes))
        if before <= UNSETTLED_BYTES_MAX < self._unsettled_bytes and self._transport is not None:
            self._transport.pause_reading()

    def _on_control(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.PING:
            self.write(control_message(Opcode.PONG, payload))
        elif opcode == Opcode.CLOSE and self._transport is not None:
            self.write(close_message(CloseCode.NORMAL))
            self._is_closing = True
            self._transport.close()

    def _on_message_while_closing(self, opcode: int) -> None:
        if opcode == Opcode.CLOSE and self._transport is not None:
            self._transport.close()

    def _close(self, code: CloseCode, reason: str) -> None:
        """Say why, deliver nothing more, and leave the other side a moment to answer.

        Closing at once would reset the connection while something is unread, and the reason would be lost.
        """
        if self._is_closing or self._transport is None:
            return
        self._socket.metrics.closed(reason if reason.isidentifier() else "protocol_error")
        self.write(close_message(code, reason))
        self._is_closing = True
        self._socket.heartbeat.closing(self)
        self._socket.dispatcher.gone(self)
