"""What a write returns: a handle that tells when the server has it."""

from __future__ import annotations

import asyncio

from twinlock.errors import TwinlockError


class Write:
    """A write that is safe on this device.

    `id` is the document's id (of a batch: empty).
    """

    __slots__ = ("__weakref__", "_error", "_is_settled", "_waiters", "id")

    def __init__(self, id: str = "") -> None:
        self.id = id
        self._is_settled = False
        self._error: TwinlockError | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def is_durable(self) -> bool:
        """Tell whether the server has it on its disk."""
        return self._is_settled and self._error is None

    async def durable(self) -> None:
        """Wait until the server has it on its disk.

        Raises:
            TwinlockError: the server refused it for good; it lies in `db.refused`.
            ClosedError: the database was closed first; the write is sent when it is opened again.
        """
        if not self._is_settled:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self._error is not None:
            raise self._error

    def abandon(self, error: TwinlockError) -> None:
        """Tell those who wait that the server's word will not come in this run; the write itself goes on."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiters.clear()

    def settle(self, error: TwinlockError | None) -> None:
        """Note the server's word, which is final."""
        self._is_settled = True
        self._error = error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
