"""The client of `nats-py`, with a shorter way for messages: from the socket to whoever listens, in the same turn.

The client itself parses headers for people to read, queues each message, and wakes a task that each subscription has.
Nothing here waits in a receiver, so all of that can be left off: half of the processor's time of an append, and ten
kilobytes for each space that is followed. What is overridden here is no public part of the client; should another
version hand its messages on otherwise, nobody would be told of any, and every test of the engine would fail.
"""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from twinlock.engines.jetstream_message import Message

_STATUS = slice(len("NATS/1.0"), None)


class DirectClient(Client):
    """A client that calls back at once with the messages of its subscriptions."""

    def __init__(self) -> None:
        super().__init__()
        self._receivers: dict[int, Callable[[Message], object]] = {}

    async def listen(self, subject: str, receiver: Callable[[Message], object]) -> Subscription:
        """Call back with every message of a subject; the receiver must not raise.

        Raises:
            nats.errors.Error: the connection is gone.
        """
        # Known before the server is told: nothing else gives numbers meanwhile, for no await lies before that.
        number = self._sid + 1
        self._receivers[number] = receiver
        return await self.subscribe(subject)

    async def forget(self, made: Subscription) -> None:
        """Have a subscription end.

        Raises:
            nats.errors.Error: the connection is gone.
        """
        self._receivers.pop(made._id, None)
        await made.unsubscribe()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        receiver = self._receivers.get(sid)
        if receiver is not None:
            receiver(Message(subject.decode(), data, read_headers(headers) if headers else {}))


def read_headers(block: bytes) -> dict[str, str]:
    """Read the headers of a message; what the server answers with in their first line is named `Status`."""
    lines = block.decode(errors="replace").split("\r\n")
    headers: dict[str, str] = {}
    if status := lines[0][_STATUS].split():
        headers["Status"] = status[0]
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers
