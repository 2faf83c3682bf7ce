"""Which spaces are attached to the present session, and what is pushed to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from twinlock.client.connection import Connection
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.ids import SpaceId


class Attachments:
    """Attaches and detaches spaces, and sends their pushes as far as the window allows."""

    __slots__ = ("_connection", "_pushes")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pushes: deque[tuple[SpaceId, list[bytes]]] = deque()

    def attach(self, runtime: SpaceRuntime) -> None:
        """Ask for delivery of a space from its cursor on, anew if it is attached."""
        session = self._connection.session
        links = runtime.links
        if session is None or not links:
            return
        if session.is_attached(runtime.space):
            session.detach(runtime.space)
        request = links[0].attach_request()
        session.attach(request.space, request.incarnation, request.cursor)
        self._connection.output()

    def attach_if_new(self, runtime: SpaceRuntime) -> None:
        """Ask for delivery of a space that is not attached."""
        session = self._connection.session
        if session is not None and not session.is_attached(runtime.space):
            self.attach(runtime)

    def detach(self, runtime: SpaceRuntime) -> None:
        """End delivery of a space."""
        session = self._connection.session
        if session is not None and runtime.links:
            session.detach(runtime.space)
            self._connection.output()

    def push(self, runtimes: Iterable[SpaceRuntime], now_ms: int) -> None:
        """Send what spaces have to send."""
        session = self._connection.session
        if session is None:
            return
        for runtime in runtimes:
            if runtime.attached and runtime.may_push:
                for link in runtime.links[-1:]:
                    self._pushes.extend((runtime.space, push) for push in link.outgoing(now_ms))
        while self._pushes and session.push_room > 0:
            space, push = self._pushes.popleft()
            if session.is_attached(space):
                session.push(space, push)
        self._connection.output()

    def forget_pushes(self) -> None:
        """The connection ended: what was not sent is made again."""
        self._pushes.clear()
