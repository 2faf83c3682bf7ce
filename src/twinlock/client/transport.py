"""The WebSocket to the server: whole binary messages in and out, without compression."""

from __future__ import annotations

import ipaddress
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.protocol import State
from websockets.typing import Subprotocol

from twinlock.errors import OfflineError
from twinlock.protocol.limits import FRAME_BYTES_MAX, HELLO_TIMEOUT_MS, PING_INTERVAL_MS

SUBPROTOCOL: Final = Subprotocol("twinlock.1")
PONG_TIMEOUT_MS: Final = 10_000
"""A peer that has not answered a ping for this long is dead: the connection is closed and begun anew."""

CLOSE_TIMEOUT_MS: Final = 1_000
MESSAGES_WAITING_MAX: Final = 16
"""Messages read ahead; beyond them the socket is read no further, and the server's own bound takes effect."""

WAITING_BYTES_MAX: Final = 64 << 10
"""While more than this waits to be sent, what comes after waits in the session."""

_SCHEMES: Final = {"ws": ("ws", 80), "wss": ("wss", 443), "http": ("ws", 80), "https": ("wss", 443)}


class Address(msgspec.Struct, frozen=True):
    """Where a server is: the origin that a hello is bound to, and the address of its sync socket.

    `others` are further addresses of the same server, those of its other nodes, tried in turn.
    """

    origin: str
    host: str
    others: tuple[Address, ...] = ()

    @property
    def text(self) -> str:
        """All of it in the form that `parse_address` reads."""
        return ",".join(each.origin for each in (self, *self.others))

    def turned(self, count: int) -> Address:
        """Return the same server, beginning with another of its addresses."""
        every = (self, *self.others)
        first, *others = every[count % len(every) :] + every[: count % len(every)]
        return Address(first.origin, first.host, tuple(Address(each.origin, each.host) for each in others))

    @property
    def sync_url(self) -> str:
        """The address of the sync socket."""
        return f"{self.origin}/sync"

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.origin.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Tell whether the server is on this machine, so that no proxy can stand between."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(url: str) -> Address:
    """Read a server's address: `ws://`, `wss://`, `http://` or `https://`, with or without a port and path.

    Several, with commas between them, are those of one server's nodes.

    Raises:
        OfflineError: the address is not of that form.
    """
    first, *others = [_parse_one(part.strip()) for part in url.split(",")]
    return Address(first.origin, first.host, tuple(others))


def _parse_one(url: str) -> Address:
    parts = urlsplit(url if "//" in url else f"ws://{url}")
    try:
        scheme, default_port = _SCHEMES[parts.scheme]
        port = parts.port or default_port
    except (KeyError, ValueError) as exc:
        raise OfflineError(f"{url!r} is not the address of a server") from exc
    if not parts.hostname:
        raise OfflineError(f"{url!r} names no host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(f"{scheme}://{host}:{port}", parts.hostname)


class Transport(ABC):
    """One open connection for whole messages. Every failure of the network is an OfflineError."""

    __slots__ = ()

    @abstractmethod
    async def send(self, message: bytes) -> None:
        """Send one message; waits while there is no room for it."""

    @abstractmethod
    def send_now(self, message: bytes) -> bool:
        """Send one message without waiting; return False, with nothing sent, if `send` has to wait for room."""

    @abstractmethod
    async def receive(self) -> bytes:
        """Return the next message."""


Dial = Callable[[Address], AbstractAsyncContextManager[Transport]]
"""Opens a connection to a server, and closes it at the end."""


class SocketTransport(Transport):
    """One open WebSocket."""

    __slots__ = ("_socket",)

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, message: bytes) -> None:
        """Send one message; waits while the socket's buffer is full."""
        try:
            await self._socket.send(message)
        except ConnectionClosed as exc:
            raise OfflineError("the connection ended") from exc

    def send_now(self, message: bytes) -> bool:
        """Send one message without waiting; return False, with nothing sent, if `send` has to wait for the socket."""
        socket = self._socket
        if socket.state is not State.OPEN or socket.transport.get_write_buffer_size() > WAITING_BYTES_MAX:
            return False
        try:
            socket.protocol.send_binary(message)
            socket.send_data()
        except Exception:
            # Whoever reads from the socket hears of its end.
            socket.transport.abort()
        return True

    async def receive(self) -> bytes:
        """Return the next message."""
        try:
            message = await self._socket.recv(decode=False)
        except ConnectionClosed as exc:
            raise OfflineError("the connection ended") from exc
        return bytes(message) if not isinstance(message, bytes) else message


def tls_context() -> ssl.SSLContext:
    """Trust what this machine trusts; TLS 1.3 is the oldest version that is spoken."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@asynccontextmanager
async def open_transport(address: Address) -> AsyncIterator[Transport]:
    """Open a socket to a server, and close it at the end.

    Raises:
        OfflineError: there is no server, or it does not speak this protocol.
    """
    try:
        socket = await connect(
            address.sync_url,
            ssl=tls_context() if address.origin.startswith("wss:") else None,
            subprotocols=[SUBPROTOCOL],
            compression=None,
            max_size=FRAME_BYTES_MAX,
            max_queue=MESSAGES_WAITING_MAX,
            proxy=None if address.is_loopback else True,
            user_agent_header=None,
            open_timeout=HELLO_TIMEOUT_MS / 1000,
            ping_interval=PING_INTERVAL_MS / 1000,
            ping_timeout=PONG_TIMEOUT_MS / 1000,
            close_timeout=CLOSE_TIMEOUT_MS / 1000,
        )
    except (OSError, TimeoutError, WebSocketException) as exc:
        raise OfflineError(f"{address.origin}: {type(exc).__name__}") from exc
    try:
        yield SocketTransport(socket)
    finally:
        await socket.close()
