"""An open database: `db` in every example. Made by `twinlock.connect`, `sign_up`, `sign_in` and `recover`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Self

from twinlock.client.batch import WriteBatch
from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.credentials import Credentials
from twinlock.client.device_context import DeviceContext
from twinlock.client.devices import DeviceInfo, Devices
from twinlock.client.endings import SpaceEnd, finish_wiping, space_ends
from twinlock.client.file_service import FileService
from twinlock.client.file_upkeep import FileUpkeep
from twinlock.client.keystore import Custody, forget_store_key
from twinlock.client.revocation import Revoker
from twinlock.client.revoked import wipe
from twinlock.client.sharing import Sharing
from twinlock.client.space import Space
from twinlock.client.space_handle import SpaceHandle
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.spaces import SpaceInfo, SpaceMaker, find_space
from twinlock.client.status import Status, StatusBoard, StatusListener
from twinlock.client.supervisor import Supervisor
from twinlock.client.writes import Write
from twinlock.errors import (
    ClosedError,
    DeviceRevokedError,
    OfflineError,
    TwinlockError,
    WrongServerError,
)
from twinlock.ids import SpaceId
from twinlock.replica.batch import Batch
from twinlock.replica.store import QuarantinedEnvelope, RefusedWrite
from twinlock.sealing.identity import AccountKeys

logger = logging.getLogger(__name__)

FIRST_TRY_MS_MAX = 3_000
"""How long opening waits for the server before it goes on without it."""

SETTLE_MS_MAX = 10_000
SIGN_OUT_MS_MAX = 10_000
FATAL = (WrongServerError, DeviceRevokedError)


class Client:
    """One account's data on this device, live while there is a connection, whole without one."""

    def __init__(
        self,
        context: DeviceContext,
        custody: Custody,
        connection: Connection,
        board: StatusBoard,
        credentials: Credentials,
    ) -> None:
        self._context = context
        self._custody = custody
        self._connection = connection
        self._board = board
        self._credentials = credentials
        self._sudo = credentials.sudo
        self._courier = Courier(context, connection, board)
        self._devices = Devices(context, connection, credentials.sudo)
        self._maker = SpaceMaker(context, connection)
        self._sharing = Sharing(context, connection, self._courier, credentials.sudo)
        settings = self._sharing.settings
        self._revoker = Revoker(context, connection, self._courier, self._devices, credentials, settings)
        self._handles: dict[SpaceId, SpaceHandle] = {}
        self._files = FileService(context, connection, self._courier, self._commit)
        self._file_upkeep = FileUpkeep(self._files, self._commit, context.files.unused_days, context.entropy)
        self._supervisor = Supervisor(context, connection, self._courier, self._files.uploads, self._go_dark)
        self._is_closed = False
        self._closed_by: TwinlockError | None = None

    # Life

    async def start(self) -> None:
        """Open what is on this device, then give the server a moment to answer.

        Raises:
            WrongServerError, DeviceRevokedError: the server's first answer forbids to go on.
        """
        self._courier.after_account = self._after_account
        self._courier.tenders += [self._sudo.tend, self._sharing.rotations.tend]
        self._courier.tenders += [self._files.tend, self._file_upkeep.tend]
        finish_wiping(self._context)
        for space in self._context.state.spaces():
            self._courier.add(self._known_space(space))
        self._supervisor.start()
        await self._within(FIRST_TRY_MS_MAX, self._connection.first_try())
        if isinstance(self._connection.last_error, DeviceRevokedError):
            await self._within(SETTLE_MS_MAX, self._supervisor.revocation_was_read())
        if isinstance(self._connection.last_error, FATAL):
            raise self._connection.last_error
        if self._connection.session is not None:
            await self._within(SETTLE_MS_MAX, self._courier.settled())

    async def close(self) -> None:
        """Close the connection and the files. Unsent writes stay on this device for the next time."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._supervisor.stop()
        self._release(ClosedError())
        self._context.profile.close()

    def _release(self, reason: TwinlockError) -> None:
        """Close everything but the profile's folder; whoever calls from now on is told the reason."""
        if self._closed_by is not None:
            return
        self._closed_by = reason
        for handle in self._handles.values():
            handle.close(reason)
        self._board.set_connection(Status.DISCONNECTED)
        self._files.close()
        self._courier.close()
        self._sudo.drop()
        self._context.state.close()

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
            PartitionClosedError: the server's operator lets no new spaces in now.
        """
        self._check_open()
        incarnation = self._courier.incarnation
        runtime = await self._maker.make(self._sudo.keys(), incarnation, title, lease_hours)
        return Space(self._handle(await self._courier.adopt(runtime)))

    async def join(self, link: str) -> Space:
        """Join the space of an invite link and open it; joining where one is a member already is fine.

        Raises:
            SudoNeededError: call `unlock` first.
            InviteError: the link is none, or has expired, been used up or withdrawn.
            ApprovalPendingError: an owner or admin confirms it first; the space then opens by itself.
            OfflineError: a space is joined at the server.
        """
        self._check_open()
        return Space(self._handle(await self._sharing.joiner.join(link)))

    def ended_spaces(self) -> list[SpaceEnd]:
        """Return the spaces that this account was removed from or left, or that were shredded, as noticed here."""
        self._check_open()
        return list(space_ends(self._context).values())

    def batch(self, space: Space | None = None) -> WriteBatch:
        """Begin a batch: writes to one space that every reader sees at once, or never."""
        return space.batch() if space is not None else WriteBatch()

    # Account

    async def unlock(self, password: str) -> None:
        """Allow changes of devices, members and keys for 15 minutes, and finish what waits for that.

        Raises:
            CredentialsError: the password is wrong.
        """
        self._check_open()
        await self._credentials.unlock(password)
        self._revoker.finish_later()

    def grant_for_good(self, keys: AccountKeys) -> None:
        """Leave a service account unlocked: its keys lie in a file anyway."""
        self._sudo.grant(keys, is_lasting=True)

    def recovery_kit(self) -> str:
        """Return the recovery kit that was just made. It is shown once: write it down.

        Raises:
            NotFoundError: it was shown before; `new_recovery_kit` makes another.
        """
        return self._credentials.shown_kit()

    def kit_qr(self, kit: str) -> str:
        """Return the text of a QR code that holds a kit; `recover` takes it in place of the letters.

        Raises:
            RecoveryKitError: it is no kit.
        """
        return self._credentials.kit_qr(kit)

    async def new_recovery_kit(self) -> str:
        """Make a new recovery kit in place of the old one, which opens nothing any more.

        Raises:
            SudoNeededError: call `unlock` first.
        """
        self._check_open()
        return await self._credentials.new_kit()

    async def set_password(self, password: str) -> None:
        """Replace the account's password, and the one that `unlock` takes on this device.

        Raises:
            SudoNeededError: call `unlock` first.
        """
        self._check_open()
        await self._credentials.set_password(password)

    async def change_password(self, old: str, new: str) -> None:
        """Replace the account's password, and the one that `unlock` takes on this device, by naming the old one.

        Raises:
            CredentialsError: the old password is not the one that `unlock` takes here.
            PasswordError: the new one is too short.
        """
        self._check_open()
        await self._credentials.change_password(old, new)

    # Devices

    async def devices(self) -> list[DeviceInfo]:
        """Return the devices of this account, as its signed log tells; offline, as far as they are known here.

        Raises:
            LogForkError: the server shows another log than before.
        """
        self._check_open()
        return await self._devices.all()

    async def rename_device(self, name: str, device: str | None = None) -> None:
        """Give this device, or another one (by id or name), a name that only the account's devices can read.

        Raises:
            UnknownDeviceError: the account has no such device.
        """
        self._check_open()
        await self._devices.rename(name, device)

    async def pair_device(self, code: str) -> str:
        """Add the device that shows this code, or a QR code of this text; return the digits that it must show too.

        Raises:
            SudoNeededError: call `unlock` first.
            PairingUnknownError: no device waits under this code.
            PairingRefusedError: the server told other keys than those of the device that shows the code.
        """
        self._check_open()
        return await self._devices.approve(code)

    async def revoke(self, device: str, *, stolen: bool = False) -> None:
        """Cut a device (by id or name) off at once, and for good; calling it again finishes what was interrupted.

        Args:
            device: any device of this account but this one, which signs out instead.
            stolen: whoever has it may read its disk: the account's keys are replaced as well, every space that this
                account administers gets a new epoch, and `recovery_kit` shows a new kit, once. A password that opened
                data (`password_unlock`) opens nothing any more until `set_password`.

        Raises:
            SudoNeededError: call `unlock` first.
            UnknownDeviceError: the account has no such device.
        """
        self._check_open()
        await self._revoker.revoke(device, stolen)

    async def sign_out(self) -> None:
        """Remove the account from this device: its keys, its records, its data.

        Raises:
            OfflineError: some writes are not on the server yet; nothing was removed.
        """
        self._check_open()
        if self.pending_count:
            await self._within(SIGN_OUT_MS_MAX, self.synced())
        if unsent := self.pending_count + self._files.held_count:
            raise OfflineError(f"{unsent} writes and files are on this device only")
        await self.close()
        profile = self._context.profile.reopened()
        try:
            forget_store_key(profile.folder)
        finally:
            profile.erase()

    # State

    @property
    def name(self) -> str:
        """The account's name."""
        return self._context.state.home.name

    @property
    def account(self) -> str:
        """The account's id, in hex."""
        return self._context.state.home.account.hex()

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
        runtimes = self._courier.runtimes
        return {space.hex(): found for space, runtime in runtimes.items() if (found := runtime.refused())}

    def forget_refused(self) -> None:
        """Drop the refused writes, once the application has dealt with them."""
        for runtime in self._courier.runtimes.values():
            runtime.forget_refused()

    @property
    def quarantine(self) -> Mapping[str, list[QuarantinedEnvelope]]:
        """The entries that could not be merged, by space id, with their reasons."""
        replicas = self._courier.replicas()
        return {space.hex(): found for space, replica in replicas.items() if (found := replica.quarantined())}

    # Insides

    def _go_dark(self) -> None:
        """The account has revoked this device: nothing on it opens anything from now on."""
        device, now_ms = self._context.state.device_keys.device, self._context.clock.now_ms()
        try:
            for runtime in self._courier.runtimes.values():
                runtime.keyring.forget()
            self._release(DeviceRevokedError())
        finally:
            wipe(self._context.profile, device, now_ms)

    async def _after_account(self) -> None:
        """What this device owes the account once it has read its log."""
        try:
            await self._devices.tell_own_name()
        except TwinlockError as exc:
            logger.info("this device's name is told later", extra={"code": exc.code})
        if self._sudo.is_granted:
            await self._revoker.finish()

    def _known_space(self, space: SpaceId) -> SpaceRuntime:
        runtime = SpaceRuntime(self._context, self._context.state.space_log(space))
        runtime.staging.discard_drafts()
        runtime.restore()
        return runtime

    def _handle(self, runtime: SpaceRuntime) -> SpaceHandle:
        handle = self._handles.get(runtime.space)
        if handle is None or handle.runtime is not runtime:
            # A space that ended and began again is another one to those who hold the old handle.
            handle = self._handles[runtime.space] = SpaceHandle(
                self._context, self._courier, runtime, self._sharing, self._files
            )
        return handle

    async def _commit(self, runtime: SpaceRuntime, batch: Batch) -> Write:
        return await self._handle(runtime).write(batch)

    async def _within(self, ms_max: int, waiting: Coroutine[None, None, None]) -> None:
        try:
            async with asyncio.timeout(ms_max / 1000):
                await waiting
        except TimeoutError:
            return

    def _check_open(self) -> None:
        if self._closed_by is not None:
            raise self._closed_by
