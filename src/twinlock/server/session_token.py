"""The call by which a session gets a token for HTTP. See spec/protocol.md, section 9."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.protocol.blob_calls import BearerToken
from twinlock.protocol.calls import Nothing
from twinlock.server.authorize import device_of
from twinlock.server.bearer import Bearers
from twinlock.server.methods import Method
from twinlock.server.peer import Peer
from twinlock.server.sign_in import SessionEnds


class SessionTokens:
    """Answers `session.token`."""

    __slots__ = ("_bearers", "_ends", "_now_ms")

    def __init__(self, bearers: Bearers, ends: SessionEnds, now_ms: Callable[[], int]) -> None:
        self._bearers = bearers
        self._ends = ends
        self._now_ms = now_ms

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {"session.token": Method(Nothing, self._token)}

    async def _token(self, peer: Peer, request: Nothing) -> BearerToken:
        author = device_of(peer)
        return self._bearers.issue(author.account, author.device, self._now_ms(), self._ends.end_ms(peer))
