"""Asks the log where spaces stand, once for all who want to know at the same time."""

from __future__ import annotations

import asyncio

from twinlock.contracts import Log, SpaceState
from twinlock.ids import SpaceId
from twinlock.server.served_space import ServedSpace
from twinlock.server.tasks import Tasks


class Confirmations:
    """The questions that are under way. An answer is never older than the question of who gets it."""

    __slots__ = ("_coming", "_log", "_tasks")

    def __init__(self, log: Log, tasks: Tasks) -> None:
        self._log = log
        self._tasks = tasks
        self._coming: dict[SpaceId, asyncio.Future[SpaceState]] = {}

    async def of(self, space: ServedSpace) -> SpaceState:
        """Return a space's state of now; the sequencer takes over the heads that it did not know.

        Raises:
            StoreError, OverloadedError: the log does not tell.
        """
        coming = self._coming.get(space.id)
        if coming is None:
            coming = self._coming[space.id] = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._ask(space.id, coming), "ask where a space stands")
        state = await asyncio.shield(coming)
        space.sequencer.raise_heads(state.heads)
        return state

    async def _ask(self, space: SpaceId, coming: asyncio.Future[SpaceState]) -> None:
        # Whoever asks from here on asks anew: all that asked in this turn of the loop are answered together.
        await asyncio.sleep(0)
        del self._coming[space]
        try:
            coming.set_result(await self._log.state(space))
        except Exception as error:
            # Told to whoever asked, who acts on it; some may be gone by now. A cancelled answer would end them unheard.
            coming.set_exception(error)
            coming.exception()
        except BaseException:
            coming.cancel()
            raise
