"""The broker contract on core NATS. The connection asks its server not to send back what it sent itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from twinlock.contracts.broker import Broker, Receiver, Subject
from twinlock.engines.jetstream_connection import Connection
from twinlock.engines.jetstream_format import Names
from twinlock.engines.jetstream_message import Message


class JetstreamBroker(Broker):
    """Subjects below one of the cluster's own; one subscription of the connection for all receivers of a subject."""

    __slots__ = ("_connection", "_ends", "_prefix", "_receivers")

    def __init__(self, connection: Connection, names: Names) -> None:
        self._connection = connection
        self._prefix = names.broker
        self._receivers: dict[Subject, dict[object, Receiver]] = {}
        self._ends: dict[Subject, Callable[[], None]] = {}

    def publish(self, subject: Subject, message: bytes) -> None:
        """Hand a message to every other node that is subscribed now."""
        self._connection.publish(f"{self._prefix}.{subject}", message)

    def subscribe(self, subject: Subject, receiver: Receiver) -> Callable[[], None]:
        """Call `receiver` with every later message of a subject; return what ends it."""
        token = object()
        if subject not in self._receivers:
            self._receivers[subject] = {}
            name = f"{self._prefix}.{subject}"
            self._ends[subject] = self._connection.subscribe(name, lambda message: self._deliver(subject, message))
        self._receivers[subject][token] = receiver

        def end() -> None:
            receivers = self._receivers.get(subject, {})
            if receivers.pop(token, None) is not None and not receivers:
                del self._receivers[subject]
                self._ends.pop(subject)()

        return end

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Call back after the connection was lost and is there again."""
        self._connection.on_gap(callback)

    def _deliver(self, subject: Subject, message: Message) -> None:
        loop = asyncio.get_running_loop()
        for token in tuple(self._receivers.get(subject, {})):
            # One callback each, so that a receiver that raises does not keep the message from the others.
            loop.call_soon(self._hand_over, subject, token, message.payload)

    def _hand_over(self, subject: Subject, token: object, payload: bytes) -> None:
        receiver = self._receivers.get(subject, {}).get(token)
        if receiver is not None:
            receiver(payload)
