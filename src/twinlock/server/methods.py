"""What a call is for the server: a name, the form of its parameters, and what answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from twinlock.errors import InvalidCallError
from twinlock.protocol.calls import AppendLog, CreateSpace, SignedEntry
from twinlock.protocol.device_calls import Rekem
from twinlock.protocol.membership_calls import Join
from twinlock.server.peer import Peer

Handler = Callable[[Peer, Any], Awaitable[msgspec.Struct]]
Admit = Callable[[msgspec.Struct], None]
"""Refuses a call by raising a `TwinlockError`."""


class Method:
    """One method: reads its parameters, answers with its result."""

    __slots__ = ("_decode", "_handler")

    def __init__(self, params: type[msgspec.Struct], handler: Handler) -> None:
        self._decode = msgspec.msgpack.Decoder(params).decode
        self._handler = handler

    async def answer(self, peer: Peer, params: msgspec.Raw, admit: Admit | None = None) -> msgspec.Raw:
        """Return the encoded result; `admit` looks at the parameters before anything is done with them.

        Raises:
            InvalidCallError: the parameters are not of this method's form.
            TwinlockError: what `admit` or the method itself refuses.
        """
        try:
            request = self._decode(params)
        except (msgspec.DecodeError, ValueError) as exc:
            raise InvalidCallError(str(exc)) from exc
        if admit is not None:
            admit(request)
        return msgspec.Raw(msgspec.msgpack.encode(await self._handler(peer, request)))


def entries_in(request: msgspec.Struct) -> int:
    """Return how many entries of signed logs a call brings; a long one counts once for every KiB that it begins."""
    match request:
        case AppendLog() | CreateSpace() | Rekem():
            return sum(map(_weight, request.entries))
        case Join():
            return _weight(request.entry)
    return 0


def _weight(entry: SignedEntry) -> int:
    return 1 + len(entry.body) // 1024
