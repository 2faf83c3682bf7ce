"""What every broker of several nodes must do. Subclass with a fixture `brokers`: those of two nodes of one cluster."""

from __future__ import annotations

import asyncio
from typing import Any

from twinlock.contracts.broker import Broker


async def reached(received: list[bytes], count: int) -> None:
    """Wait until a receiver has got so many messages, then a moment more, so that one too many shows."""
    async with asyncio.timeout(10):
        while len(received) < count:  # noqa: ASYNC110  # the receiver is a list's own method
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)


class BrokerContract:
    """Messages to the nodes that listen now."""

    async def test_every_subscriber_of_other_nodes_gets_every_message_in_order(
        self, brokers: tuple[Broker, Broker]
    ) -> None:
        """Of its own subject only, and nobody hears the own node."""
        here, there = brokers
        first: list[bytes] = []
        second: list[bytes] = []
        own: list[bytes] = []
        there.subscribe("sig.a", first.append)
        there.subscribe("sig.a", second.append)
        there.subscribe("sig.b", second.append)
        here.subscribe("sig.a", own.append)
        await settled()

        for message in (b"1", b"2", b"3"):
            here.publish("sig.a", message)
        await reached(first, 3)
        await reached(second, 3)

        assert first == [b"1", b"2", b"3"]
        assert second == [b"1", b"2", b"3"]
        assert own == []

    async def test_nothing_is_kept_for_later(self, brokers: tuple[Broker, Broker]) -> None:
        """A message without a subscriber is gone."""
        here, there = brokers
        received: list[bytes] = []
        here.publish("sig.a", b"early")
        await settled()

        there.subscribe("sig.a", received.append)
        await settled()

        assert received == []

    async def test_an_ended_subscription_gets_nothing_more(self, brokers: tuple[Broker, Broker]) -> None:
        """Ending twice is fine, and the same receiver may come back."""
        here, there = brokers
        received: list[bytes] = []
        end = there.subscribe("sig.a", received.append)
        await settled()
        end()
        end()
        here.publish("sig.a", b"after")
        await settled()
        assert received == []

        there.subscribe("sig.a", received.append)
        await settled()
        here.publish("sig.a", b"again")
        await reached(received, 1)
        assert received == [b"again"]

    async def test_a_receiver_that_fails_keeps_nothing_from_the_others(self, brokers: tuple[Broker, Broker]) -> None:
        """Its error goes to the event loop's handler."""
        here, there = brokers
        received: list[bytes] = []
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

        def fail(message: bytes) -> None:
            raise RuntimeError(message)

        there.subscribe("sig.a", fail)
        there.subscribe("sig.a", received.append)
        await settled()
        here.publish("sig.a", b"1")
        here.publish("sig.a", b"2")
        await reached(received, 2)

        assert received == [b"1", b"2"]
        assert len(errors) == 2


async def settled() -> None:
    """Let what is on its way between nodes arrive."""
    await asyncio.sleep(0.05)
