"""What `db.status` says, and who is told when it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
StatusListener = Callable[["Status"], None]


class Status(StrEnum):
    """The state of a database: `initial connecting connected reconnecting disconnected locked`.

    `connected` means that the server answered within the last heartbeat. `locked` stands above the connection's state:
    the lease has ended, so that reading needs the server first.
    """

    INITIAL = "initial"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    DISCONNECTED = "disconnected"
    LOCKED = "locked"


class StatusBoard:
    """The one place that says how things stand; listeners hear each change once, in order."""

    __slots__ = ("_connection", "_is_locked", "_listeners", "_shown")

    def __init__(self) -> None:
        self._connection = Status.INITIAL
        self._is_locked = False
        self._shown = Status.INITIAL
        self._listeners: list[StatusListener] = []

    @property
    def shown(self) -> Status:
        """The status as the application sees it."""
        return self._shown

    @property
    def connection(self) -> Status:
        """The status of the connection alone."""
        return self._connection

    def set_connection(self, status: Status) -> None:
        """Note a change of the connection."""
        self._connection = status
        self._publish()

    def set_locked(self, is_locked: bool) -> None:
        """Note that a lease ended or came back."""
        self._is_locked = is_locked
        self._publish()

    def listen(self, listener: StatusListener) -> Callable[[], None]:
        """Call `listener` at every change; return what ends it."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def _publish(self) -> None:
        ended = self._connection is Status.DISCONNECTED
        shown = Status.LOCKED if self._is_locked and not ended else self._connection
        if shown is self._shown:
            return
        self._shown = shown
        for listener in list(self._listeners):
            call_safely(listener, shown)


def call_safely(callback: Callable[[Value], object], value: Value) -> None:
    """Call the application's code; what it raises is logged and never reaches the connection."""
    try:
        callback(value)
    except Exception:
        logger.exception("a callback of the application failed")
