"""One connection to a NATS cluster: many requests in flight, subscriptions, and connecting anew for ever.

Everything is told by calls in the event loop. What was under way when a connection is lost is told as having no
answer (None): its outcome is unknown, and only a look at the cluster tells. Subscriptions are made again on the next
connection, and whoever asked is told that messages may have been missed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from collections.abc import Callable
from ssl import SSLContext
from typing import Any, cast

from twinlock.engines import jetstream_wire as wire
from twinlock.engines.jetstream_options import Address, NatsOptions
from twinlock.engines.jetstream_wire import Listener, Message, Parser
from twinlock.errors import ClosedError, StoreError, TwinlockError

logger = logging.getLogger(__name__)

CONNECT_SECONDS_MAX = 3.0
CLOSE_SECONDS_MAX = 1.0
TICK_SECONDS = 1.0
UNANSWERED_PINGS_MAX = 3
"""A server that says nothing for so many ticks is given up: it may be paused, or behind a broken network."""

RECONNECT_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
SWEEP_SECONDS = 0.1
INBOX = b"_INBOX."
_INBOX_SUBSCRIPTION = 1

Answered = Callable[[Message | None], bool]
"""Called with each answer to a request, or None when there will be none; returns whether it is over."""


class _Link(asyncio.Protocol, Listener):
    """One TCP connection and what is known of it."""

    def __init__(self, owner: Connection, address: Address) -> None:
        self.address = address
        self.transport: asyncio.Transport | None = None
        self.info: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unanswered = 0
        self._owner = owner
        self._parser = Parser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, and act as such all the same.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.unanswered = 0
        try:
            self._parser.feed(data)
        except StoreError as exc:
            self.fail(exc.detail)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(StoreError(f"the connection to NATS was lost: {exc}"))
        if not self.gone.done():
            self.gone.set_result(None)
        self._owner.lost(self)

    def on_message(self, subscription: int, message: Message) -> None:
        self._owner.deliver(subscription, message)

    def on_control(self, verb: bytes, rest: bytes) -> None:
        if verb == b"PING":
            self.write(b"PONG\r\n")
        elif verb == b"PONG":
            if not self.ready.done():
                self.ready.set_result(None)
        elif verb == b"INFO":
            info = json.loads(rest)
            if not self.info.done():
                self.info.set_result(info)
            elif info.get("ldm"):
                # The server is about to end: go to another one before it does.
                self.fail("lame duck")
        elif verb == b"-ERR":
            self._refused(rest.decode(errors="replace").strip("' "))

    def _refused(self, text: str) -> None:
        logger.warning("NATS refused something", extra={"detail": text})
        if not self.ready.done():
            self._end(StoreError(f"NATS refuses the connection: {text}"))

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def fail(self, reason: str) -> None:
        logger.info("a connection to NATS is given up", extra={"reason": reason})
        if self.transport is not None:
            self.transport.abort()

    def _end(self, error: StoreError) -> None:
        for future in (self.info, self.ready):
            if not future.done():
                future.set_exception(error)
                # Nobody may be waiting for it any more.
                future.exception()


class _Subscription:
    __slots__ = ("number", "receiver", "subject")

    def __init__(self, number: int, subject: bytes, receiver: Callable[[Message], None]) -> None:
        self.number = number
        self.subject = subject
        self.receiver = receiver


class _Pending:
    __slots__ = ("answered", "ends_s", "seconds")

    def __init__(self, answered: Answered, seconds: float, ends_s: float) -> None:
        self.answered = answered
        self.seconds = seconds
        self.ends_s = ends_s


class Connection:
    """A lasting connection to whichever server of the cluster answers."""

    __slots__ = (
        "_closed",
        "_failed",
        "_gaps",
        "_inbox",
        "_link",
        "_loop",
        "_number",
        "_options",
        "_out",
        "_out_bytes",
        "_pending",
        "_runner",
        "_subscriptions",
        "_sweeper",
        "_ticker",
        "_tls",
        "_up",
    )

    def __init__(self, options: NatsOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._tls: SSLContext | None = options.tls_context() if options.is_tls else None
        self._link: _Link | None = None
        self._failed: Address | None = None
        self._up = asyncio.Event()
        self._closed = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._inbox = INBOX + secrets.token_hex(8).encode() + b"."
        self._number = _INBOX_SUBSCRIPTION
        self._pending: dict[bytes, _Pending] = {}
        self._subscriptions: dict[int, _Subscription] = {}
        self._gaps: list[Callable[[], None]] = []
        self._runner: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Connect to any server of the cluster; the connection lasts from then on.

        Raises:
            StoreError: none of them can be reached, or they refuse us.
        """
        error: StoreError | None = None
        for address in self._shuffled():
            try:
                self._began(await self._dial(address))
            except StoreError as exc:
                error = exc
                continue
            self._ticker = self._loop.call_later(TICK_SECONDS, self._tick)
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
            return
        raise error or StoreError("no address of a NATS server")

    @property
    def is_up(self) -> bool:
        """Whether there is a connection now."""
        return self._link is not None

    @property
    def backlog_bytes(self) -> int:
        """Bytes that wait for the socket."""
        transport = self._link.transport if self._link is not None else None
        return self._out_bytes + (transport.get_write_buffer_size() if transport is not None else 0)

    @property
    def server(self) -> dict[str, Any]:
        """What the server told of itself when it was connected; empty while there is no connection."""
        return self._link.info.result() if self._link is not None else {}

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Call back whenever a connection was lost and is there again: messages may have been missed."""
        self._gaps.append(callback)

    def publish(self, subject: bytes, payload: bytes) -> None:
        """Send a message to whoever listens; it is gone if there is no connection."""
        self._send(wire.publish(subject, payload))

    def ask(
        self, subject: bytes, payload: bytes, answered: Answered, *, seconds: float, headers: bytes = b""
    ) -> Callable[[], None]:
        """Send a request and call back with its answers; return what gives up waiting, without a call back.

        None is told when nothing has come for so many seconds, or when the connection is lost.
        """
        self._number += 1
        token = b"%x" % self._number
        if self._link is None:
            self._loop.call_soon(answered, None)
            return _nothing
        self._pending[token] = _Pending(answered, seconds, self._loop.time() + seconds)
        self._send(wire.publish(subject, payload, self._inbox + token, headers))

        def end() -> None:
            self._pending.pop(token, None)

        return end

    async def request(self, subject: bytes, payload: bytes, seconds: float, headers: bytes = b"") -> Message | None:
        """Send a request and return its answer; None if there is none in time."""
        messages = await self.request_many(subject, payload, seconds, lambda _: True, headers)
        return messages[-1] if messages else None

    async def request_many(
        self, subject: bytes, payload: bytes, seconds: float, is_last: Callable[[Message], bool], headers: bytes = b""
    ) -> list[Message] | None:
        """Send a request and return its answers up to the last one; None if that does not come in time."""
        done: asyncio.Future[list[Message] | None] = self._loop.create_future()
        messages: list[Message] = []

        def answered(message: Message | None) -> bool:
            if message is not None:
                messages.append(message)
                if not is_last(message):
                    return False
            if not done.done():
                done.set_result(None if message is None else messages)
            return True

        end = self.ask(subject, payload, answered, seconds=seconds, headers=headers)
        try:
            return await done
        finally:
            end()

    def subscribe(self, subject: bytes, receiver: Callable[[Message], None]) -> Callable[[], None]:
        """Call back with every message of a subject from now on; return what ends it."""
        self._number += 1
        number = self._number
        self._subscriptions[number] = _Subscription(number, subject, receiver)
        self._send(b"SUB %b %d\r\n" % (subject, number))

        def end() -> None:
            if self._subscriptions.pop(number, None) is not None:
                self._send(b"UNSUB %d\r\n" % number)

        return end

    async def wait_up(self, seconds: float) -> bool:
        """Wait until there is a connection; tell whether there is."""
        try:
            await asyncio.wait_for(self._up.wait(), seconds)
        except TimeoutError:
            return False
        return not self._closed

    async def close(self) -> None:
        """Send what waits, then end the connection; nothing is called back after this but what was under way."""
        self._closed = True
        for timer in (self._ticker, self._sweeper):
            if timer is not None:
                timer.cancel()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        self._flush()
        link = self._link
        if link is not None and link.transport is not None:
            link.transport.close()
            self.lost(link)
            # TLS says goodbye first, while the loop still turns.
            await asyncio.wait({link.gone}, timeout=CLOSE_SECONDS_MAX)
            link.transport.abort()
        self._up.set()

    # Called by the link.

    def deliver(self, number: int, message: Message) -> None:
        """Pass a message on to whoever asked for it or subscribed."""
        if number == _INBOX_SUBSCRIPTION:
            token = message.subject[len(self._inbox) :]
            pending = self._pending.get(token)
            if pending is not None:
                if self._call(pending.answered, message):
                    self._pending.pop(token, None)
                else:
                    # More is to come, and it is coming.
                    pending.ends_s = self._loop.time() + pending.seconds
            return
        subscription = self._subscriptions.get(number)
        if subscription is not None:
            self._call(subscription.receiver, message)

    def lost(self, link: _Link) -> None:
        """Tell whoever waits that no answer will come, and connect anew."""
        if link is not self._link:
            return
        self._link = None
        self._failed = link.address
        self._up.clear()
        self._out, self._out_bytes = [], 0
        pending, self._pending = self._pending, {}
        for each in pending.values():
            self._call(each.answered, None)
        if not self._closed:
            self._runner = self._loop.create_task(self._reconnect())

    def _call(self, callback: Callable[..., Any], message: Message | None) -> Any:
        """Call back; an error of whoever is called goes to the loop's handler and harms no other."""
        try:
            return callback(message)
        except Exception as exc:
            self._loop.call_exception_handler({"message": "a receiver of NATS messages failed", "exception": exc})
            return True

    # Connecting.

    async def _reconnect(self) -> None:
        tries = 0
        while not self._closed:
            for address in self._shuffled():
                try:
                    link = await self._dial(address)
                except StoreError as exc:
                    logger.info("NATS cannot be reached", extra={"server": address.host, "detail": exc.detail})
                    continue
                self._began(link)
                for callback in self._gaps:
                    callback()
                return
            await asyncio.sleep(RECONNECT_SECONDS[min(tries, len(RECONNECT_SECONDS) - 1)] * (0.5 + random.random()))  # noqa: S311 - only spreads load
            tries += 1

    def _shuffled(self) -> list[Address]:
        """Return the addresses in any order, but the one that failed last at the end."""
        addresses = list(self._options.addresses)
        random.shuffle(addresses)
        addresses.sort(key=lambda address: address == self._failed)
        return addresses

    async def _dial(self, address: Address) -> _Link:
        link = _Link(self, address)
        try:
            await asyncio.wait_for(self._shake_hands(link, address), CONNECT_SECONDS_MAX)
        except TwinlockError:
            link.fail("refused")
            raise
        except (OSError, TimeoutError, ValueError) as exc:
            link.fail("unreachable")
            raise StoreError(f"NATS at {address.host}:{address.port} cannot be reached: {exc}") from exc
        except BaseException:
            link.fail("cancelled")
            raise
        if link.gone.done():
            # Lost between its last word and now, so that nobody would be told of its end.
            raise StoreError(f"NATS at {address.host}:{address.port} closed the connection")
        return link

    async def _shake_hands(self, link: _Link, address: Address) -> None:
        await self._loop.create_connection(lambda: link, address.host, address.port)
        info = await link.info
        if self._tls is not None:
            assert link.transport is not None
            link.transport = await self._loop.start_tls(link.transport, link, self._tls, server_hostname=address.host)
        elif info.get("tls_required"):
            raise StoreError("the NATS server wants TLS: use tls:// and name its authority")
        options = {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "1",
            "name": "twinlock",
            "protocol": 1,
            "headers": True,
            "echo": False,
            "no_responders": True,
            "tls_required": self._tls is not None,
            **self._options.proofs(info.get("nonce", "")),
        }
        link.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        await link.ready

    def _began(self, link: _Link) -> None:
        lines = [b"SUB %b* %d\r\n" % (self._inbox, _INBOX_SUBSCRIPTION)]
        lines += [b"SUB %b %d\r\n" % (held.subject, held.number) for held in self._subscriptions.values()]
        link.write(b"".join(lines))
        self._link = link
        self._out, self._out_bytes = [], 0
        self._up.set()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_SECONDS, self._tick)
        link = self._link
        if link is None:
            return
        if link.unanswered >= UNANSWERED_PINGS_MAX:
            link.fail("no answer")
            return
        link.unanswered += 1
        link.write(b"PING\r\n")

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        now = self._loop.time()
        for token in [token for token, pending in self._pending.items() if pending.ends_s < now]:
            pending = self._pending.pop(token, None)
            if pending is not None:
                self._call(pending.answered, None)

    # Sending: one write for everything of a loop turn.

    def _send(self, data: bytes) -> None:
        if self._link is None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        self._out_bytes += len(data)

    def _flush(self) -> None:
        if self._out and self._link is not None:
            self._link.write(b"".join(self._out))
        self._out, self._out_bytes = [], 0

    def check_open(self) -> None:
        """Check that `close` was not called.

        Raises:
            ClosedError: it was.
        """
        if self._closed:
            raise ClosedError


def _nothing() -> None:
    """End what has ended already."""
