"""The connection to the server: dial, say hello, serve, and come back. See spec/protocol.md, sections 3 and 7.

It knows sessions and frames; what they mean for the data is the affair of its `Peer`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import msgspec

from twinlock.client.backoff import Backoff
from twinlock.client.device_clock import DeviceClock
from twinlock.client.options import Token
from twinlock.client.status import Status, StatusBoard
from twinlock.client.token_times import fresh_token, refresh_after_s
from twinlock.client.transport import Address, Dial, Transport, open_transport
from twinlock.errors import (
    DeviceRevokedError,
    InternalError,
    MalformedFrameError,
    OfflineError,
    TwinlockError,
)
from twinlock.protocol.calls import Nothing
from twinlock.protocol.client import ClientIdentity, ClientSession, Event, Replied, Welcomed
from twinlock.protocol.device_calls import RefreshToken
from twinlock.protocol.frames import Goaway
from twinlock.protocol.limits import HELLO_TIMEOUT_MS
from twinlock.sealing.suite import Entropy

logger = logging.getLogger(__name__)

Result = TypeVar("Result", bound=msgspec.Struct)


class Peer(ABC):
    """What stands behind a connection: it takes events in and puts frames into the session. Must not block."""

    @abstractmethod
    def on_welcomed(self, welcomed: Welcomed) -> None:
        """A session stands: attach, lease, and push through `Connection.session`."""

    @abstractmethod
    def on_event(self, event: Event) -> None:
        """Take in one event of the session."""

    @abstractmethod
    def work(self) -> bool:
        """Do a bounded slice of what there is to do; return whether more is left."""

    @abstractmethod
    def on_disconnected(self) -> None:
        """The session is gone."""

    @abstractmethod
    def on_failure(self, failure: TwinlockError) -> None:
        """A connection failed or ended, for this reason; another follows."""


class Connection:
    """Keeps one session with the server alive for as long as `run` runs.

    Args:
        address: the server.
        identity: the device that signs in.
        server_id: the pinned server.
        board: where the status is shown.
        clock: corrected at every welcome.
        entropy: the source of nonces and of the jitter.
        dial: opens the socket.
    """

    def __init__(
        self,
        address: Address,
        identity: ClientIdentity,
        server_id: bytes,
        board: StatusBoard,
        clock: DeviceClock,
        entropy: Entropy,
        dial: Dial = open_transport,
    ) -> None:
        self._dial = dial
        self._given = address
        # Devices spread over the nodes of a server from their first connection on.
        self._address = address.turned(entropy(1)[0]) if address.others else address
        self._identity = identity
        self._server_id = server_id
        self._board = board
        self._clock = clock
        self._entropy = entropy
        self._backoff = Backoff(lambda: int.from_bytes(entropy(4), "big") / (1 << 32))
        self._ticket = b""
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._transport: Transport | None = None
        self._output_ready = asyncio.Event()
        self._is_writing = False
        self._unsent: list[bytes] = []
        self._work_ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._hurry = asyncio.Event()
        self._first_try = asyncio.Event()
        self.token: Token | None = None
        self.told_revoked = asyncio.Event()
        self.session: ClientSession | None = None
        self.last_error: TwinlockError | None = None

    @property
    def origin(self) -> str:
        """The server's address, as it is dialled now."""
        return self._address.origin

    @property
    def url(self) -> str:
        """Every address of the server, as it was given."""
        return self._given.text

    async def run(self, peer: Peer) -> None:
        """Connect, serve and reconnect until cancelled."""
        self._board.set_connection(Status.CONNECTING)
        while True:
            # Each session is a task of its own: when a part of it fails, a TaskGroup before Python 3.13 leaves a
            # cancellation on its task that is not meant for it, and the wait below would end for ever.
            async with asyncio.TaskGroup() as sessions:
                session = sessions.create_task(self._serve_once(peer))
            failure = session.result()
            self.last_error = failure
            peer.on_failure(failure)
            if isinstance(failure, DeviceRevokedError):
                self.told_revoked.set()
            self._first_try.set()
            self._board.set_connection(Status.RECONNECTING)
            self._address = self._address.turned(1) if self._address.others else self._address
            delay_ms = self._backoff.next_delay_ms(self._monotonic_ms(), failure.retry_after_ms)
            logger.info("waiting to reconnect", extra={"delay_ms": delay_ms, "code": failure.code})
            await self._wait(delay_ms)

    def note_fault(self) -> None:
        """A fault of this side ended `run`; it begins anew. What ends it for good is shown by whoever ends it."""
        self._board.set_connection(Status.RECONNECTING)

    @property
    def address(self) -> Address:
        """The server's address."""
        return self._address

    @property
    def dial(self) -> Dial:
        """What opens a connection to it."""
        return self._dial

    async def first_try(self) -> None:
        """Wait until the first attempt to connect has succeeded or failed."""
        await self._first_try.wait()

    def reconnect_now(self) -> None:
        """Do not wait any longer for the next attempt."""
        self._hurry.set()

    def wake(self) -> None:
        """There is output, or work to do."""
        self.output()
        self._work_ready.set()

    def output(self) -> None:
        """There is output; nothing else changed. It goes out here and now, without another loop turn, if it can."""
        if self._transport is None or self.session is None or self._is_writing:
            self._output_ready.set()
            return
        messages = self.session.take_output()
        for at, message in enumerate(messages):
            if not self._transport.send_now(message):
                self._unsent = messages[at:]
                self._is_writing = True
                self._output_ready.set()
                return

    async def call(self, method: str, params: msgspec.Struct, result: type[Result]) -> Result:
        """Send a request and return its result.

        Raises:
            OfflineError: there is no session, or it ended before the reply.
            TwinlockError: what the server answered.
        """
        session = self.session
        if session is None:
            raise OfflineError(method)
        number = session.call(method, params)
        future: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self.output()
        try:
            return msgspec.msgpack.decode(await future, type=result)
        except msgspec.DecodeError as exc:
            raise MalformedFrameError(f"the result of {method}") from exc
        finally:
            self._calls.pop(number, None)

    async def _serve_once(self, peer: Peer) -> TwinlockError:
        """Serve one session to its end; return why it ended."""
        failure: TwinlockError = OfflineError("the connection ended")
        try:
            token = await fresh_token(self.token)
            async with self._dial(self._address) as transport:
                await self._serve(transport, peer, token)
        except* TwinlockError as group:
            failure = _first(group)
        except* Exception:
            # A fault of this side ends one connection, not the application's database.
            logger.exception("the connection failed by a fault of its own")
            failure = InternalError("a fault in the client, see the log")
        finally:
            self._end_session(peer)
        return failure

    async def _serve(self, transport: Transport, peer: Peer, token: str) -> None:
        identity = msgspec.structs.replace(self._identity, token=token)
        session = ClientSession(identity, self._address.origin, self._server_id, self._entropy, self._ticket)
        welcomed = await handshake(transport, session, self._clock.wall_ms)
        self._ticket = welcomed.ticket
        self._clock.offset_ms = welcomed.clock_offset_ms
        self.session = session
        self._transport = transport
        self._is_writing, self._unsent = False, []
        self._backoff.connected(self._monotonic_ms())
        self._board.set_connection(Status.CONNECTED)
        self.last_error = None
        self._first_try.set()
        peer.on_welcomed(welcomed)
        self.wake()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(transport, session, peer))
            tasks.create_task(self._write(transport, session))
            tasks.create_task(self._work(peer))
            tasks.create_task(self._refresh(token))

    async def _read(self, transport: Transport, session: ClientSession, peer: Peer) -> None:
        while True:
            event = session.receive(await transport.receive(), self._clock.wall_ms())
            match event:
                case None:
                    continue
                case Replied():
                    self._on_reply(event)
                case Goaway():
                    raise OfflineError("the server goes down", retry_after_ms=event.retry_after_ms)
                case _:
                    peer.on_event(event)
                    # The first slice runs here and now, so that a single change is seen without another loop turn.
                    if peer.work():
                        self._idle.clear()
                        self._work_ready.set()
                        # Reading stops while there is a backlog: memory stays bounded, the server waits for us.
                        await self._idle.wait()
            self.output()

    async def _write(self, transport: Transport, session: ClientSession) -> None:
        while True:
            await self._output_ready.wait()
            self._output_ready.clear()
            # What is made meanwhile comes after, here.
            self._is_writing = True
            while messages := self._unsent + session.take_output():
                self._unsent = []
                for message in messages:
                    await transport.send(message)
            self._is_writing = False

    async def _work(self, peer: Peer) -> None:
        while True:
            await self._work_ready.wait()
            self._work_ready.clear()
            while peer.work():
                self.output()
                # The application's own tasks run between two slices.
                await asyncio.sleep(0)
            self.output()
            self._idle.set()

    async def _refresh(self, token: str) -> None:
        """Bring the server a newer token before this session's one ends, again and again."""
        while token and (wait_s := refresh_after_s(token, self._clock.now_ms())) is not None:
            await asyncio.sleep(wait_s)
            try:
                newer = await fresh_token(self.token)
                await self.call("session.refresh", RefreshToken(newer), Nothing)
                token = newer
            except TwinlockError as exc:
                # There is some time left: the old token, whose end is the session's, is tried to be replaced again.
                logger.warning("the token was not refreshed", extra={"code": exc.code})

    def _on_reply(self, reply: Replied) -> None:
        future = self._calls.get(reply.call)
        if future is None or future.done():
            return
        if reply.error is not None:
            future.set_exception(reply.error)
        else:
            future.set_result(reply.result)

    def _end_session(self, peer: Peer) -> None:
        session, self.session = self.session, None
        self._transport = None
        if session is None:
            return
        session.close()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(OfflineError("the connection ended before the reply"))
        self._idle.set()
        peer.on_disconnected()

    async def _wait(self, delay_ms: int) -> None:
        self._hurry.clear()
        try:
            async with asyncio.timeout(delay_ms / 1000):
                await self._hurry.wait()
        except TimeoutError:
            return

    @staticmethod
    def _monotonic_ms() -> int:
        return int(asyncio.get_running_loop().time() * 1000)


async def handshake(transport: Transport, session: ClientSession, wall_ms: Callable[[], int]) -> Welcomed:
    """Answer the challenge and return the verified welcome.

    Raises:
        OfflineError: the server did not answer in time, or is going down.
        TwinlockError: it refused, or is not the pinned one.
    """
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_MS / 1000):
            while True:
                event = session.receive(await transport.receive(), wall_ms())
                if isinstance(event, Welcomed):
                    return event
                if isinstance(event, Goaway):
                    raise OfflineError("the server goes down", retry_after_ms=event.retry_after_ms)
                for message in session.take_output():
                    await transport.send(message)
    except TimeoutError as exc:
        raise OfflineError("the server did not answer the hello") from exc


def _first(group: BaseExceptionGroup[TwinlockError]) -> TwinlockError:
    """Return the first error of a group: reader and writer see the same end of one connection."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, TwinlockError)
    return found
