"""One lasting connection to a NATS cluster, by `nats-py`: many requests in flight, subscriptions, connecting anew.

Everything is told by calls in the event loop. What was under way when a connection is lost is told as having no
answer (None): its outcome is unknown, and only a look at the cluster tells. Subscriptions are made again on the next
connection, and whoever asked is told that messages may have been missed.

The client's own reconnecting is left off: it waits for the old socket to close, which a paused server never lets it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from nats.aio.subscription import Subscription
from nats.errors import Error

from twinlock.engines.jetstream_client import DirectClient
from twinlock.engines.jetstream_message import Message
from twinlock.engines.jetstream_options import SEE_KEY, Address, NatsOptions, shown_error, why_unusable
from twinlock.errors import ClosedError, StoreError

logger = logging.getLogger(__name__)
# The client's TLS streams answer their end in a way that asyncio warns of, each time, and that changes nothing.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received() has no effect" not in record.getMessage())

CONNECT_SECONDS_MAX = 2
CLOSE_SECONDS_MAX = 1.0
TICK_SECONDS = 1.0
ANSWER_SECONDS_MAX = 3.0
"""A server that answers no ping for so long is given up: it may be paused, or behind a broken network."""

RECONNECT_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
SWEEP_SECONDS = 0.1
Answered = Callable[[Message | None], bool]
"""Called with each answer to a request, or None when there will be none; returns whether it is over."""

Receiving = Callable[[Message], object]


class _Outgoing(msgspec.Struct, frozen=True):
    subject: str
    payload: bytes
    reply: str
    headers: Mapping[str, str] | None


class _Pending:
    __slots__ = ("answered", "ends_s", "seconds")

    def __init__(self, answered: Answered, seconds: float, ends_s: float) -> None:
        self.answered = answered
        self.seconds = seconds
        self.ends_s = ends_s


class _Subscription:
    """A subject and who listens to it; `made` is what the present client knows of it."""

    __slots__ = ("is_ended", "made", "receiver", "subject")

    def __init__(self, subject: str, receiver: Receiving) -> None:
        self.subject = subject
        self.receiver = receiver
        self.made: Subscription | None = None
        self.is_ended = False


class Connection:
    """A lasting connection to whichever server of the cluster answers."""

    __slots__ = (
        "_client",
        "_closed",
        "_gaps",
        "_gone",
        "_inbox",
        "_last",
        "_loop",
        "_number",
        "_options",
        "_out",
        "_pending",
        "_refusal",
        "_subscriptions",
        "_sweeper",
        "_tasks",
        "_up",
        "_woken",
    )

    def __init__(self, options: NatsOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._client: DirectClient | None = None
        self._last: Address | None = None
        self._up = asyncio.Event()
        self._gone = asyncio.Event()
        self._woken = asyncio.Event()
        self._closed = False
        self._out: list[_Outgoing | _Subscription] = []
        self._inbox = f"_INBOX.{secrets.token_hex(8)}."
        self._number = 0
        self._pending: dict[str, _Pending] = {}
        self._refusal: Exception | None = None
        self._subscriptions: dict[int, _Subscription] = {}
        self._gaps: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Connect to any server of the cluster; the connection lasts from then on.

        Raises:
            StoreError: none of them can be reached, or they refuse us.
        """
        self._keep(f"{self._inbox}*", self._answer)
        error = StoreError("no address of a NATS server")
        for address in self._shuffled():
            try:
                await self._dial(address)
            except StoreError as exc:
                error = exc
                continue
            for work, name in ((self._send_all(), "send to NATS"), (self._supervise(), "watch over NATS")):
                self._tasks.append(self._loop.create_task(work, name=name))
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
            return
        raise error

    @property
    def server(self) -> dict[str, Any]:
        """What the server told of itself when it was connected; empty while there is no connection."""
        # The client keeps the whole greeting, and has public names for some of it only.
        return {} if self._client is None else dict(self._client._server_info)

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Call back whenever messages may have been missed: a connection was lost and is there again."""
        self._gaps.append(callback)

    def publish(self, subject: str, payload: bytes) -> None:
        """Send a message to whoever listens; it is gone if there is no connection."""
        self._send(_Outgoing(subject, payload, "", None))

    def ask(
        self,
        subject: str,
        payload: bytes,
        answered: Answered,
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> Callable[[], None]:
        """Send a request and call back with its answers; return what gives up waiting, without a call back.

        None is told when nothing has come for so many seconds, or when the connection is lost.
        """
        self._number += 1
        reply = f"{self._inbox}{self._number:x}"
        if self._client is None:
            self._loop.call_soon(answered, None)
            return _nothing
        self._pending[reply] = _Pending(answered, seconds, self._loop.time() + seconds)
        self._send(_Outgoing(subject, payload, reply, headers))

        def end() -> None:
            self._pending.pop(reply, None)

        return end

    async def request(
        self, subject: str, payload: bytes, seconds: float, headers: Mapping[str, str] | None = None
    ) -> Message | None:
        """Send a request and return its answer; None if there is none in time."""
        messages = await self.request_many(subject, payload, seconds, lambda _: True, headers)
        return messages[-1] if messages else None

    async def request_many(
        self,
        subject: str,
        payload: bytes,
        seconds: float,
        is_last: Callable[[Message], bool],
        headers: Mapping[str, str] | None = None,
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

    def subscribe(self, subject: str, receiver: Receiving) -> Callable[[], None]:
        """Call back with every message of a subject from now on; return what ends it."""
        number = self._keep(subject, receiver)
        held = self._subscriptions[number]
        self._send(held)

        def end() -> None:
            if self._subscriptions.pop(number, None) is not None:
                held.is_ended = True
                self._send(held)

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
        if self._sweeper is not None:
            self._sweeper.cancel()
        client = self._client
        if client is not None and not self._gone.is_set():
            await self._send_waiting(client)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The supervisor may have come to another server meanwhile.
        client = self._client
        self._lose()
        if client is not None:
            await _close(client)
        self._up.set()

    def check_permitted(self, subject: str) -> None:
        """Check, after a request got no answer, that the server has not just refused its subject to our key.

        Raises:
            StoreError: it has; another try finds out anew, since what a key may do can be altered meanwhile.
        """
        refusal = self._refusal
        if refusal is not None and f'"{subject.lower()}"' in str(refusal).lower():
            self._refusal = None
            raise StoreError(f"{shown_error(refusal)}; {SEE_KEY}")

    def check_open(self) -> None:
        """Check that `close` was not called.

        Raises:
            ClosedError: it was.
        """
        if self._closed:
            raise ClosedError

    # Receiving.

    def _keep(self, subject: str, receiver: Receiving) -> int:
        self._number += 1
        self._subscriptions[self._number] = _Subscription(subject, receiver)
        return self._number

    def _answer(self, message: Message) -> None:
        """Pass an answer on to whoever asked."""
        pending = self._pending.get(message.subject)
        if pending is None:
            return
        if self._call(pending.answered, message):
            self._pending.pop(message.subject, None)
        else:
            # More is to come, and it is coming.
            pending.ends_s = self._loop.time() + pending.seconds

    def _call(self, callback: Callable[..., Any], message: Message | None) -> Any:
        """Call back; an error of whoever is called goes to the loop's handler and harms no other."""
        try:
            return callback(message)
        except Exception as exc:
            self._loop.call_exception_handler({"message": "a receiver of NATS messages failed", "exception": exc})
            return True

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        now = self._loop.time()
        for reply in [reply for reply, pending in self._pending.items() if pending.ends_s < now]:
            late = self._pending.pop(reply, None)
            if late is not None:
                self._call(late.answered, None)

    # Sending: one task, so that everything leaves in its order.

    def _send(self, outgoing: _Outgoing | _Subscription) -> None:
        if self._client is None:
            return
        self._out.append(outgoing)
        self._woken.set()

    async def _send_all(self) -> None:
        while not self._closed:
            await self._woken.wait()
            self._woken.clear()
            client = self._client
            if client is not None:
                await self._send_waiting(client)

    async def _send_waiting(self, client: DirectClient) -> None:
        out, self._out = self._out, []
        try:
            for each in out:
                if isinstance(each, _Outgoing):
                    headers = None if each.headers is None else dict(each.headers)
                    await client.publish(each.subject, each.payload, each.reply, headers)
                else:
                    await self._settle(client, each)
        except (Error, OSError) as exc:
            # What was under way is told as unknown once the client is given up.
            logger.info("sending to NATS failed", extra={"detail": str(exc)})
            self._gone.set()

    async def _settle(self, client: DirectClient, held: _Subscription) -> None:
        """Make a subscription known to the server, or have it forgotten."""
        if held.is_ended:
            made, held.made = held.made, None
            if made is not None:
                await client.forget(made)
            return
        held.made = await client.listen(held.subject, partial(self._call, held.receiver))

    # Connecting.

    async def _supervise(self) -> None:
        """See that the server answers, and go to another one when it does not."""
        # The client swallows cancellations: that this was closed is looked at too.
        while not self._closed:
            client = self._client
            assert client is not None
            if await self._is_alive(client) or self._closed:
                continue
            self._lose()
            closing = self._loop.create_task(_close(client), name="leave a NATS server")
            try:
                await self._connect_anew()
            finally:
                await closing
            for callback in self._gaps:
                callback()

    async def _is_alive(self, client: DirectClient) -> bool:
        """Return after a moment whether the server still answers, at once if it is known to be gone."""
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self._gone.wait()
        except TimeoutError:
            pass
        else:
            return False
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await client.flush(timeout=int(ANSWER_SECONDS_MAX))
        except (Error, OSError, TimeoutError) as exc:
            logger.info("a connection to NATS is given up", extra={"detail": str(exc)})
            return False
        return True

    def _lose(self) -> None:
        """Tell whoever waits that no answer will come."""
        self._client = None
        self._up.clear()
        self._out = []
        pending, self._pending = self._pending, {}
        for each in pending.values():
            self._call(each.answered, None)

    async def _connect_anew(self) -> None:
        tries = 0
        while not self._closed:
            for address in self._shuffled():
                try:
                    await self._dial(address)
                except StoreError as exc:
                    logger.info("NATS cannot be reached", extra={"server": address.host, "detail": exc.detail})
                    continue
                return
            spread = 0.5 + random.random()  # noqa: S311  # it only spreads load
            await asyncio.sleep(RECONNECT_SECONDS[min(tries, len(RECONNECT_SECONDS) - 1)] * spread)
            tries += 1

    def _shuffled(self) -> list[Address]:
        """Return the servers in the order to try them: the one that was lost comes last."""
        addresses = list(self._options.addresses)
        random.shuffle(addresses)
        return sorted(addresses, key=lambda address: address == self._last)

    async def _dial(self, address: Address) -> None:
        """Connect to one server and subscribe to all that is listened to.

        Raises:
            StoreError: it cannot be reached, or refuses us.
        """
        client, told = DirectClient(), deque[Exception](maxlen=1)
        gone = asyncio.Event()

        async def leave() -> None:
            gone.set()

        async def fail(exc: Exception) -> None:
            told.append(exc)
            if client.is_connected:
                self._refusal = exc
                logger.warning("NATS tells of an error", extra={"detail": shown_error(exc)})

        self._last = address
        try:
            await client.connect(
                **self._options.connect_arguments(address),
                connect_timeout=CONNECT_SECONDS_MAX,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                no_echo=True,
                error_cb=fail,
                closed_cb=leave,
                lame_duck_mode_cb=leave,
                skip_subject_validation=True,
            )
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                for held in self._subscriptions.values():
                    await self._settle(client, held)
                await client.flush()
        except (Error, OSError, TimeoutError, ValueError) as exc:
            await _close(client)
            raise StoreError(why_unusable(address, told[-1] if told else exc)) from exc
        self._gone = gone
        self._client = client
        self._out = []
        self._up.set()


async def _close(client: DirectClient) -> None:
    """End a client and its socket."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            await client.close()
    except (Error, OSError, TimeoutError) as exc:
        logger.info("a connection to NATS did not end in good order", extra={"detail": str(exc)})
    finally:
        # A server that is paused takes nothing any more, and the client has no way to give its socket up.
        writer: asyncio.StreamWriter | None = getattr(client._transport, "_io_writer", None)
        if writer is not None:
            # A TLS transport that has closed in good order has nothing left to abort, and some versions say so.
            with suppress(AttributeError):
                writer.transport.abort()


def _nothing() -> None:
    """End what has ended already."""
