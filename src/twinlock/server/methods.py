"""What a call is for the server: a name, the form of its parameters, and what answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from twinlock.errors import InvalidCallError
from twinlock.server.peer import Peer

Handler = Callable[[Peer, Any], Awaitable[msgspec.Struct]]


class Method:
    """One method: reads its parameters, answers with its result."""

    __slots__ = ("_decode", "_handler")

    def __init__(self, params: type[msgspec.Struct], handler: Handler) -> None:
        self._decode = msgspec.msgpack.Decoder(params).decode
        self._handler = handler

    async def answer(self, peer: Peer, params: msgspec.Raw) -> msgspec.Raw:
        """Return the encoded result.

        Raises:
            InvalidCallError: the parameters are not of this method's form.
            TwinlockError: what the method itself refuses.
        """
        try:
            request = self._decode(params)
        except (msgspec.DecodeError, ValueError) as exc:
            raise InvalidCallError(str(exc)) from exc
        return msgspec.Raw(msgspec.msgpack.encode(await self._handler(peer, request)))
