"""A drill's last step: a real server on what was restored, which answers on a socket and loads every space.

It has no key service: the real one is apart, and no key is needed to see that the data would be served.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from urllib.request import urlopen

import msgspec
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from twinlock.backup.holdings import Holdings
from twinlock.backup.proving import Note
from twinlock.contracts import Asking, KeyService
from twinlock.errors import KeyServiceError, TwinlockError
from twinlock.ids import LogId, Seq
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.client import ClientIdentity, ClientSession, Welcomed
from twinlock.protocol.frames import Lease, Leases
from twinlock.protocol.limits import FRAME_BYTES_MAX
from twinlock.server.app import Server, build_services, wall_clock_ms
from twinlock.server.heartbeat import Heartbeat
from twinlock.server.metrics import Metrics
from twinlock.server.secrets_file import ServerSecrets, make_secrets
from twinlock.server.settings import Settings
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks

ANSWER_S_MAX = 10.0


class AbsentKeys(KeyService):
    """A key service that never answers: servers go on with their copies of the signed logs."""

    async def take_turn(self, log: LogId) -> int:
        """Fail."""
        raise _absent()

    async def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int = 0) -> LogHead:
        """Fail."""
        raise _absent()

    async def read_log(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Fail."""
        raise _absent()

    async def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Fail."""
        raise _absent()

    async def lease(self, asking: Asking, request: Lease) -> Leases:
        """Fail."""
        raise _absent()

    async def tend(self, now_ms: int) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


class ServedReport(msgspec.Struct, frozen=True):
    """How many spaces were loaded as for the first device that attaches."""

    spaces_count: int


async def prove_serving(holdings: Holdings, identity: bytes, note: Note) -> ServedReport:
    """Serve what was restored on a port of this machine, look at it from outside, then load every space.

    Args:
        holdings: what was restored, in a scratch place.
        identity: the server's own secrets, if the backup has them.
        note: takes what is wrong.
    """
    secrets = ServerSecrets(identity) if identity else make_secrets()
    stores = Stores(
        log=holdings.log,
        directory=holdings.directory,
        broker=holdings.broker,
        blobs=holdings.blobs,
        keys=AbsentKeys(),
        secrets=secrets,
        close=_close_nothing,
    )
    settings = Settings(port=0, log_level="error", drain_ms=100, sign_ups_per_min=1)
    server = Server(settings, stores)
    await server.start()
    try:
        await _greet(server, holdings, secrets, note)
    finally:
        await server.stop()
    return ServedReport(await _load_all(settings, stores, holdings, note))


async def _greet(server: Server, holdings: Holdings, secrets: ServerSecrets, note: Note) -> None:
    """See that it is ready, and that a client takes its welcome."""
    status = await asyncio.to_thread(_status, f"http://127.0.0.1:{server.port}/readyz")
    if status != 200:
        note(f"the restored server answers /readyz with {status}")
    session = ClientSession(ClientIdentity(), server.url, secrets.server_id, os.urandom)
    protocol = [Subprotocol("twinlock.1")]
    address = f"{server.url}/sync"
    async with (
        asyncio.timeout(ANSWER_S_MAX),
        connect(address, subprotocols=protocol, compression=None, max_size=FRAME_BYTES_MAX, proxy=None) as socket,
    ):
        welcomed = None
        while welcomed is None:
            event = session.receive(await socket.recv(decode=False), wall_clock_ms())
            for message in session.take_output():
                await socket.send(message)
            welcomed = event if isinstance(event, Welcomed) else None
    if welcomed.incarnation != holdings.log.incarnation:
        note("the restored server names another incarnation than its database has")


async def _load_all(settings: Settings, stores: Stores, holdings: Holdings, note: Note) -> int:
    """Load every space as for the first device that attaches; devices of a former life must read all of it."""
    metrics = Metrics()
    heartbeat = Heartbeat(metrics)
    count = 0
    async with asyncio.TaskGroup() as group:
        services = build_services(settings, stores, Tasks(group), metrics, heartbeat)
        async for place in holdings.all_places():
            try:
                space = await services.registry.load(place.space)
            except KeyServiceError:
                # Its signed log was being changed when the backup was made: served once the key service has told all.
                count += 1
                continue
            except TwinlockError as error:
                note(f"space {place.space.hex()} cannot be served: {error}")
                continue
            count += 1
            if space.resume_for(os.urandom(16), Seq(1 << 60), space.delivered):
                note(f"space {place.space.hex()} would be resumed in its middle")
    heartbeat.stop()
    return count


def _status(address: str) -> int:
    with urlopen(address, timeout=ANSWER_S_MAX) as answer:  # noqa: S310 - an address of our own
        return int(answer.status)


def _absent() -> KeyServiceError:
    return KeyServiceError("a drill has none")


async def _close_nothing() -> None:
    """Leave the stores to the drill."""
