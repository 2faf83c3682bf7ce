"""An open database: `db` in every example. Made by `twinlock.connect`, `sign_up`, `sign_in` and `recover`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Self

import msgspec

from twinlock.client.batch import WriteBatch
from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.keystore import Custody, forget_store_key
from twinlock.client.space import Space
from twinlock.client.space_handle import SpaceHandle
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.spaces import SpaceInfo, SpaceMaker, find_space
from twinlock.client.status import Status, StatusBoard, StatusListener
from twinlock.client.sudo import Sudo
from twinlock.errors import (
    ClosedError,
    DeviceRevokedError,
    NotFoundError,
    OfflineError,
    TwinlockError,
    WrongServerError,
)
from twinlock.ids import SpaceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import Nothing, PutUnlocker
from twinlock.replica.store import QuarantinedEnvelope, RefusedWrite
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.vault import RecoveryKit, make_unlocker

logger = logging.getLogger(__name__)

FIRST_TRY_MS_MAX = 3_000
"""How long opening waits for the server before it goes on without it."""

RESTART_DELAY_S = 1.0
SETTLE_MS_MAX = 10_000
SIGN_OUT_MS_MAX = 10_000
FATAL = (WrongServerError, DeviceRevokedError)


class DeviceInfo(msgspec.Struct, frozen=True):
    """A device of this account."""

    id: str
    this: bool
    revoked: bool


class Client:
    """One account's data on this device, live while there is a connection, whole without one."""

    def __init__(
        self,
        context: DeviceContext,
        custody: Custody,
        connection: Connection,
        board: StatusBoard,
        sudo: Sudo,
        kit: RecoveryKit | None = None,
    ) -> None:
        self._context = context
        self._custody = custody
        self._connection = connection
        self._board = board
        self._sudo = sudo
        self._kit = kit
        self._courier = Courier(context, connection, board)
        self._maker = SpaceMaker(context, connection)
        self._handles: dict[SpaceId, SpaceHandle] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._is_closed = False

    # Life

    async def start(self) -> None:
        """Open what is on this device, then give the server a moment to answer.

        Raises:
            WrongServerError, DeviceRevokedError: the server's first answer forbids to go on.
        """
        for space in self._context.state.spaces():
            self._courier.add(self._known_space(space))
        self._supervisor = asyncio.create_task(self._supervise(), name="twinlock")
        await self._within(FIRST_TRY_MS_MAX, self._connection.first_try())
        if isinstance(self._connection.last_error, FATAL):
            raise self._connection.last_error
        if self._connection.session is not None:
            await self._within(SETTLE_MS_MAX, self._courier.settled())

    async def close(self) -> None:
        """Close the connection and the files. Unsent writes stay on this device for the next time."""
        if self._is_closed:
            return
        self._is_closed = True
        for handle in self._handles.values():
            handle.close()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        self._board.set_connection(Status.DISCONNECTED)
        self._courier.close()
        self._sudo.drop()
        self._context.state.close()
        self._context.profile.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Spaces

    def space(self, wanted: str | bytes) -> Space:
        """Return a space by its id or name.

        Raises:
            UnknownSpaceError: this account has none such, as far as this device knows.
        """
        self._check_open()
        return Space(self._handle(find_space(self._context, self._courier.runtimes.values(), wanted)))

    def spaces(self) -> list[SpaceInfo]:
        """Return the spaces that this device knows."""
        account = self._context.state.home.account
        return [
            SpaceInfo(runtime.space.hex(), runtime.title, runtime.keyring.log.role_of(account), runtime.is_locked)
            for runtime in self._courier.runtimes.values()
        ]

    async def create_space(self, title: str, lease_hours: int | None = None) -> Space:
        """Make a space of this account.

        Args:
            title: its name; reading it takes both keys, like all data.
            lease_hours: how long a device may read without the server; 0 forbids to store the lease.

        Raises:
            SudoNeededError: call `unlock` first.
            OfflineError: a space is made on the server.
        """
        self._check_open()
        incarnation = self._courier.incarnation
        runtime = await self._maker.make(self._sudo.keys(), incarnation, title, lease_hours)
        return Space(self._handle(await self._courier.adopt(runtime)))

    def batch(self, space: Space | None = None) -> WriteBatch:
        """Begin a batch: writes to one space that every reader sees at once, or never."""
        return space.batch() if space is not None else WriteBatch()

    # Account

    async def unlock(self, password: str) -> None:
        """Allow changes of devices, members and keys for 15 minutes.

        Raises:
            CredentialsError: the password is wrong.
        """
        self._check_open()
        state = self._context.state
        self._sudo.grant(await asyncio.to_thread(state.open_sudo, password, state.sudo_record()))

    def recovery_kit(self) -> str:
        """Return the recovery kit that was just made. It is shown once: write it down.

        Raises:
            NotFoundError: it was shown before; `new_recovery_kit` makes another.
        """
        kit, self._kit = self._kit, None
        if kit is None:
            raise NotFoundError("the recovery kit was shown before: make another with `await db.new_recovery_kit()`")
        return str(kit)

    async def new_recovery_kit(self) -> str:
        """Make a new recovery kit in place of the old one, which opens nothing any more.

        Raises:
            SudoNeededError: call `unlock` first.
        """
        home, keys = self._context.state.home, self._sudo.keys()
        kit = RecoveryKit.make(self._context.entropy)
        unlocker = make_unlocker(kit, home.name, home.server_id, self._context.entropy, keys)
        await self._connection.call("unlocker.put", PutUnlocker(unlocker), Nothing)
        return str(kit)

    async def set_password(self, password: str) -> None:
        """Replace the account's password, and the one that `unlock` takes on this device.

        Raises:
            SudoNeededError: call `unlock` first.
        """
        await self.put_password(self._sudo.keys(), password)

    async def put_password(self, keys: AccountKeys, password: str) -> None:
        """Store a password on the server and seal the signing key by it here."""
        state = self._context.state
        unlocker = await asyncio.to_thread(
            make_unlocker, password, state.home.name, state.home.server_id, self._context.entropy
        )
        await self._connection.call("unlocker.put", PutUnlocker(unlocker), Nothing)
        sealed = await asyncio.to_thread(state.seal_sudo, keys, password)
        state.put_sudo(sealed)

    def devices(self) -> list[DeviceInfo]:
        """Return the devices of this account, as its signed log tells."""
        state = self._context.state
        log = replay_account(state.account_log(state.home.account))
        this = state.device_keys.device
        active = [DeviceInfo(device.hex(), device == this, False) for device in log.devices]
        return active + [DeviceInfo(device.hex(), device == this, True) for device in log.revoked]

    async def sign_out(self) -> None:
        """Remove the account from this device: its keys, its records, its data.

        Raises:
            OfflineError: some writes are not on the server yet; nothing was removed.
        """
        self._check_open()
        if self.pending_count:
            await self._within(SIGN_OUT_MS_MAX, self.synced())
        if self.pending_count:
            raise OfflineError(f"{self.pending_count} writes are on this device only")
        await self.close()
        profile = self._context.profile.reopened()
        forget_store_key(profile.folder)
        profile.erase()

    # State

    @property
    def name(self) -> str:
        """The account's name."""
        return self._context.state.home.name

    @property
    def weak_storage(self) -> bool:
        """Whether this device keeps its StoreKey in a plain file, for want of a keyring or a passphrase."""
        return self._custody.is_weak

    @property
    def status(self) -> Status:
        """How things stand: `initial connecting connected reconnecting disconnected locked`."""
        return self._board.shown

    @property
    def is_connected(self) -> bool:
        """Whether there is a session with the server now, whatever may be locked."""
        return self._connection.session is not None

    @property
    def last_error(self) -> TwinlockError | None:
        """Why there is no connection, or no lease; None if all is well."""
        return self._connection.last_error

    def on_status(self, listener: StatusListener) -> Callable[[], None]:
        """Call back at every change of `status`; return what ends it."""
        return self._board.listen(listener)

    @property
    def pending_count(self) -> int:
        """Writes that are safe on this device and not yet on the server."""
        return sum(runtime.pending_count for runtime in self._courier.runtimes.values())

    async def synced(self) -> None:
        """Wait until the server has every write, and this device everything that the server had."""
        self._check_open()
        await self._courier.synced()

    @property
    def refused(self) -> Mapping[str, list[RefusedWrite]]:
        """The writes that the server refused for good, by space id; they stay until `forget_refused`."""
        replicas = self._courier.replicas()
        return {space.hex(): found for space, replica in replicas.items() if (found := replica.refused())}

    def forget_refused(self) -> None:
        """Drop the refused writes, once the application has dealt with them."""
        for replica in self._courier.replicas().values():
            replica.forget_refused([write.token for write in replica.refused()])

    @property
    def quarantine(self) -> Mapping[str, list[QuarantinedEnvelope]]:
        """The entries that could not be merged, by space id, with their reasons."""
        replicas = self._courier.replicas()
        return {space.hex(): found for space, replica in replicas.items() if (found := replica.quarantined())}

    # Insides

    async def _supervise(self) -> None:
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._connection.run(self._courier))
                    tasks.create_task(self._courier.tend_forever())
                    tasks.create_task(self._courier.do_chores())
            except Exception:
                # Who waits for the server must not wait for ever because of a fault here: the log says what it was.
                logger.exception("a fault of this side ended the connection; it begins anew")
            await asyncio.sleep(RESTART_DELAY_S)

    def _known_space(self, space: SpaceId) -> SpaceRuntime:
        runtime = SpaceRuntime(self._context, self._context.state.space_log(space))
        runtime.restore()
        return runtime

    def _handle(self, runtime: SpaceRuntime) -> SpaceHandle:
        if runtime.space not in self._handles:
            self._handles[runtime.space] = SpaceHandle(self._context, self._courier, runtime)
        return self._handles[runtime.space]

    async def _within(self, ms_max: int, waiting: Coroutine[None, None, None]) -> None:
        try:
            async with asyncio.timeout(ms_max / 1000):
                await waiting
        except TimeoutError:
            return

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError
