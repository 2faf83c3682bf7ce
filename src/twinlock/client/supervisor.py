"""What runs as long as a database is open: its connection, its clock, its chores, and an ear for its revocation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.file_uploads import Uploads
from twinlock.client.revoked import is_revoked
from twinlock.errors import DeviceRevokedError

logger = logging.getLogger(__name__)

RESTART_DELAY_S = 1.0


class Supervisor:
    """Keeps everything running until it is stopped, or this device finds itself revoked.

    Args:
        context: this device.
        connection: its connection.
        courier: what stands behind it.
        uploads: the files that are sent.
        go_dark: called once the account's own log has said that it revokes this device.
    """

    __slots__ = ("_connection", "_context", "_courier", "_go_dark", "_read", "_task", "_uploads")

    def __init__(
        self,
        context: DeviceContext,
        connection: Connection,
        courier: Courier,
        uploads: Uploads,
        go_dark: Callable[[], None],
    ) -> None:
        self._uploads = uploads
        self._context = context
        self._connection = connection
        self._courier = courier
        self._go_dark = go_dark
        self._read = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="twinlock")

    async def stop(self) -> None:
        """End everything."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def revocation_was_read(self) -> None:
        """Wait until what a server said of a revocation was verified, and obeyed if it is true."""
        await self._read.wait()

    async def _run(self) -> None:
        while True:
            # Each round is a task of its own: before Python 3.13 a TaskGroup that fails may leave its task cancelled.
            async with asyncio.TaskGroup() as rounds:
                served = rounds.create_task(self._serve())
            if served.result():
                self._go_dark()
                self._read.set()
                return
            await asyncio.sleep(RESTART_DELAY_S)

    async def _serve(self) -> bool:
        """Serve until something fails; return whether this device was revoked."""
        was_revoked = False
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._connection.run(self._courier))
                tasks.create_task(self._courier.tend_forever())
                tasks.create_task(self._courier.do_chores())
                tasks.create_task(self._uploads.run())
                tasks.create_task(self._heed_revocation())
        except* DeviceRevokedError:
            was_revoked = True
        except* Exception:
            # Who waits for the server must not wait for ever because of a fault here: the log says what it was.
            logger.exception("a fault of this side ended the connection; it begins anew")
            self._connection.note_fault()
        return was_revoked

    async def _heed_revocation(self) -> None:
        """Verify what a server says that calls this device revoked.

        Raises:
            DeviceRevokedError: the account's own log says so too.
        """
        while True:
            await self._connection.told_revoked.wait()
            self._connection.told_revoked.clear()
            if await is_revoked(self._context, self._connection.address, self._connection.dial):
                raise DeviceRevokedError
            self._read.set()
