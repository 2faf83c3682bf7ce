"""What every engine's broker must do. Subclass with a `broker` fixture."""

from __future__ import annotations

import asyncio
from typing import Any

from twinlock.contracts.broker import Broker


async def turns(count: int = 5) -> None:
    """Let the event loop deliver what is on its way."""
    for _ in range(count):
        await asyncio.sleep(0.001)


class BrokerContract:
    """Messages to whoever listens now."""

    async def test_every_subscriber_gets_every_message_in_order(self, broker: Broker) -> None:
        """Of its own subject only."""
        first: list[bytes] = []
        second: list[bytes] = []
        broker.subscribe("sig.a", first.append)
        broker.subscribe("sig.a", second.append)
        broker.subscribe("sig.b", second.append)

        for message in (b"1", b"2", b"3"):
            broker.publish("sig.a", message)
        await turns()

        assert first == [b"1", b"2", b"3"]
        assert second == [b"1", b"2", b"3"]

    async def test_nothing_is_kept_for_later(self, broker: Broker) -> None:
        """A message without a subscriber is gone."""
        received: list[bytes] = []
        broker.publish("sig.a", b"early")
        await turns()

        broker.subscribe("sig.a", received.append)
        await turns()

        assert received == []

    async def test_an_ended_subscription_gets_nothing_more(self, broker: Broker) -> None:
        """Not even what is on its way; ending twice is fine, and the same receiver may come back."""
        received: list[bytes] = []
        end = broker.subscribe("sig.a", received.append)
        broker.publish("sig.a", b"on its way")
        end()
        end()
        broker.publish("sig.a", b"after")
        await turns()
        assert received == []

        broker.subscribe("sig.a", received.append)
        broker.publish("sig.a", b"again")
        await turns()
        assert received == [b"again"]

    async def test_a_receiver_that_fails_keeps_nothing_from_the_others(self, broker: Broker) -> None:
        """Its error goes to the event loop's handler."""
        received: list[bytes] = []
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

        def fail(message: bytes) -> None:
            raise RuntimeError(message)

        broker.subscribe("sig.a", fail)
        broker.subscribe("sig.a", received.append)
        broker.publish("sig.a", b"1")
        broker.publish("sig.a", b"2")
        await turns()

        assert received == [b"1", b"2"]
        assert len(errors) == 2
