"""The replay of long space logs in pieces, so that the loop serves others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from twinlock.errors import LogInvalidError
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space

PIECE_ENTRIES = 32
"""About 10 ms of work."""


async def replay_in_pieces(entries: Sequence[SignedEntry], after: SpaceLogState | None = None) -> SpaceLogState:
    """Return the state that entries lead to.

    Raises:
        LogInvalidError, SignatureError, UpdateNeededError: as `replay_space` does.
    """
    state = after
    for first in range(0, len(entries), PIECE_ENTRIES):
        if first:
            await asyncio.sleep(0)
        state = replay_space(entries[first : first + PIECE_ENTRIES], state)
    if state is None:
        raise LogInvalidError("a space's log without a genesis")
    return state
