"""The sync socket: what uvicorn hands an upgraded connection to. One small object a connection, no task, no queue.

The opening handshake and every frame that comes in are read by `websockets`' sans-I/O protocol; what goes out to many
readers is built once by `framing` and written past it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import structlog
from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from twinlock.errors import (
    DrainingError,
    HelloTimeoutError,
    InternalError,
    LimitExceededError,
    MalformedFrameError,
    OverloadedError,
    TwinlockError,
)
from twinlock.protocol.codec import decode_client, encode
from twinlock.protocol.frames import Goaway, Notice, Push, ServerFrame
from twinlock.protocol.limits import FRAME_BYTES_MAX, PUSH_BYTES_MAX, READER_BUFFER_BYTES_MAX
from twinlock.protocol.server import ServerSession, Stage
from twinlock.server.framing import PING, binary_message
from twinlock.server.heartbeat import Beating, Heartbeat
from twinlock.server.metrics import Metrics
from twinlock.server.sequencer import Author
from twinlock.server.session import NONCE_BYTES, Dispatcher
from twinlock.server.settings import Settings

logger = structlog.get_logger(__name__)

# What peers do wrong is counted by the metrics; the library would log it line by line.
_silent = logging.getLogger("twinlock.websockets")
_silent.disabled = True

SYNC_PATH = "/sync"
SUBPROTOCOL = Subprotocol("twinlock.1")
UNSETTLED_BYTES_MAX = 2 * PUSH_BYTES_MAX
"""Pushed bytes of one connection that wait for the disk; above it nothing more is read from that connection."""

CLOSE_REASON_BYTES_MAX = 123
_CLOSE_CODES: dict[type[TwinlockError], CloseCode] = {
    LimitExceededError: CloseCode.MESSAGE_TOO_BIG,
    OverloadedError: CloseCode.TRY_AGAIN_LATER,
    DrainingError: CloseCode.TRY_AGAIN_LATER,
    InternalError: CloseCode.INTERNAL_ERROR,
}


class SyncSocket:
    """Makes a connection for every upgrade; this is what uvicorn calls."""

    __slots__ = ("_settings", "browser_origins", "dispatcher", "heartbeat", "is_draining", "metrics", "now_ms")

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
        self.browser_origins = frozenset(own | {origin.rstrip("/") for origin in settings.browser_origins})
        self.now_ms = now_ms
        self.dispatcher = dispatcher
        self.heartbeat = heartbeat
        self.metrics = metrics
        self.is_draining = False

    def __call__(self, **_: object) -> Connection:
        """Return the protocol for one upgraded connection."""
        return Connection(self)

    def answer(self, wire: ServerProtocol, request: Request) -> Response:
        """Return the response to a request: 101 opens the socket, anything else refuses it."""
        if request.path.partition("?")[0] != SYNC_PATH:
            return wire.reject(HTTPStatus.NOT_FOUND, f"The sync socket is at {SYNC_PATH}.\n")
        # A browser's page always names its origin; programs name none.
        if not all(origin in self.browser_origins for origin in request.headers.get_all("Origin")):
            return wire.reject(HTTPStatus.FORBIDDEN, "Pages of this origin may not connect.\n")
        if self.is_draining or len(self.heartbeat) >= self._settings.connections_max:
            response = wire.reject(HTTPStatus.SERVICE_UNAVAILABLE, "No more connections are taken.\n")
            response.headers["Retry-After"] = "5"
            return response
        return wire.accept(request)

    def address_of(self, request: Request, transport: asyncio.Transport) -> str:
        """Return where a client comes from: behind a proxy, what that proxy says."""
        hops = request.headers.get_all("X-Forwarded-For")
        if hops and self._settings.behind_proxy:
            # Only the last entry was written by the proxy that is trusted.
            return hops[-1].split(",")[-1].strip()[:64]
        peer = transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""


class Connection(asyncio.Protocol, Beating):
    """One sync connection. Idle it is this object, its session and its transport."""

    __slots__ = (
        "_buffered_before",
        "_fragments",
        "_is_alive",
        "_is_closing",
        "_is_shaken",
        "_socket",
        "_transport",
        "_unsettled_bytes",
        "_wire",
    )

    def __init__(self, socket: SyncSocket) -> None:
        self._socket = socket
        self._transport: asyncio.Transport | None = None
        self._wire = ServerProtocol(subprotocols=[SUBPROTOCOL], max_size=FRAME_BYTES_MAX, logger=_silent)
        self._fragments: list[bytes] = []
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
        wire = self._wire
        wire.receive_data(data)
        if not self._is_shaken:
            self._shake_hands()
            return
        self._is_alive = True
        metrics = self._socket.metrics
        metrics.bytes_in.inc(len(data))
        frames = wire.events_received()
        metrics.frames_in.inc(len(frames))
        for frame in frames:
            if not self._is_closing and isinstance(frame, Frame):
                self._on_frame(frame)
        self._flush_wire()

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
        self._close(_CLOSE_CODES.get(type(error), CloseCode.POLICY_VIOLATION), error.code)

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

    def _shake_hands(self) -> None:
        """Answer the request, which uvicorn hands over whole."""
        transport, socket, wire = self._transport, self._socket, self._wire
        assert transport is not None
        self._is_shaken = True
        nonce = os.urandom(NONCE_BYTES)
        self.session = ServerSession(nonce, socket.now_ms())
        requests = wire.events_received()
        request = requests[0] if requests else None
        if isinstance(request, Request):
            wire.send_response(socket.answer(wire, request))
            self.address = socket.address_of(request, transport)
        if wire.state is not State.OPEN:
            socket.metrics.handshakes_refused.inc()
            self._is_closing = True
            transport.writelines(wire.data_to_send())
            transport.close()
            return
        transport.set_write_buffer_limits(READER_BUFFER_BYTES_MAX, READER_BUFFER_BYTES_MAX // 4)
        socket.metrics.handshakes.inc()
        socket.heartbeat.opened(self)
        transport.writelines([*wire.data_to_send(), binary_message(encode(socket.dispatcher.challenge(nonce)))])

    def _on_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.BINARY and frame.fin:
            self._on_binary(frame.data)
        elif frame.opcode is Opcode.TEXT:
            self._close(CloseCode.UNSUPPORTED_DATA, MalformedFrameError.code)
        elif frame.opcode in (Opcode.BINARY, Opcode.CONT):
            # The protocol object bounds what the fragments of one message come to.
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                message, self._fragments = b"".join(self._fragments), []
                self._on_binary(message)

    def _flush_wire(self) -> None:
        """Send what the protocol itself answers: pongs, and its end of a close."""
        wire, transport = self._wire, self._transport
        if not wire.writes or transport is None:
            return
        if wire.parser_exc is not None and not self._is_closing:
            error = LimitExceededError if isinstance(wire.parser_exc, PayloadTooBig) else MalformedFrameError
            self._socket.metrics.closed(error.code)
            transport.write(binary_message(encode(Notice(error.code))))
        for data in wire.data_to_send():
            if data is not SEND_EOF:
                transport.write(data)
            elif wire.close_rcvd is None and not self._is_closing:
                self._leave_after_answer()
            else:
                self._is_closing = True
                transport.close()

    def _leave_after_answer(self) -> None:
        """Deliver nothing more, and leave the other side a moment to answer.

        Closing at once would reset the connection while something is unread, and the reason would be lost.
        """
        self._is_closing = True
        self._socket.heartbeat.closing(self)
        self._socket.dispatcher.gone(self)

    def _on_binary(self, payload: bytes | bytearray | memoryview) -> None:
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

    def _close(self, code: CloseCode, reason: str) -> None:
        """Say why, and end the connection once the other side has answered."""
        if self._is_closing or self._transport is None:
            return
        self._socket.metrics.closed(reason if reason.isidentifier() else MalformedFrameError.code)
        self._wire.send_close(code, reason.encode()[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore"))
        self._flush_wire()
        self._leave_after_answer()
