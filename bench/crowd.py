"""Subscribers that only take what they are sent: `python -m bench.crowd`, told what to do in lines of JSON.

They stand for readers on other machines. Each says hello and attaches by the protocol; from then on its bytes are
counted and thrown away by one loop over all sockets, so that this process costs the load's core as little as can be.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import sys
import time

from bench.event_loop import runner
from bench.json_child import tell_parent
from bench.raw_client import RawClient, open_client
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.client import ClientIdentity
from twinlock.sealing.identity import DeviceKeys

SCRATCH_BYTES = 1 << 20
END_SECONDS_MAX = 30.0
REST_S = 0.002
"""Long enough to take much at once, short enough that no buffer comes near its limit."""


async def subscribe(port: int, identity: ClientIdentity, space: SpaceId, count: int) -> list[RawClient]:
    """Attach as many connections to a space."""
    clients = []
    for _ in range(count):
        client = await open_client(port, identity)
        await client.attach(space)
        clients.append(client)
    return clients


def drain(descriptors: list[int], bytes_each: int) -> int:
    """Throw away what comes until the parent ends this and each has had its share; return the least that one had."""
    received = dict.fromkeys(descriptors, 0)
    scratch = [bytearray(SCRATCH_BYTES)]
    parent = sys.stdin.fileno()
    deadline_s = None
    with selectors.DefaultSelector() as selector:
        for descriptor in (*descriptors, parent):
            selector.register(descriptor, selectors.EVENT_READ)
        while deadline_s is None or (
            min(received.values(), default=bytes_each) < bytes_each and time.monotonic() < deadline_s
        ):
            for key, _ in selector.select(None if deadline_s is None else 0.01):
                if key.fd == parent:
                    deadline_s = time.monotonic() + END_SECONDS_MAX
                    selector.unregister(parent)
                    continue
                received[key.fd] += (taken := os.readv(key.fd, scratch))
                if not taken:
                    raise ConnectionError("the server closed a connection that keeps up")
            # Else every message would wake this process, which costs the sender more than sending it.
            time.sleep(REST_S)
    return min(received.values(), default=bytes_each)


def main() -> None:
    """Subscribe, say so, drain until told to end, and tell what that took."""
    told = json.loads(sys.stdin.readline())
    device = DeviceKeys(bytes.fromhex(told["device"]))
    identity = ClientIdentity(AccountId(bytes.fromhex(told["account"])), device.device, device.sign.sign)
    space = SpaceId(bytes.fromhex(told["space"]))
    with runner() as loop:
        clients = loop.run(subscribe(told["port"], identity, space, told["count"]))
        descriptors = [_descriptor_of(client) for client in clients]
        tell_parent("attached")
        cpu_before_s = time.process_time()
        # The loop stands still from here on: nothing else reads these sockets.
        least = drain(descriptors, told["bytes_each"])
        tell_parent({"bytes_least": least, "cpu_s": time.process_time() - cpu_before_s})
        for client in clients:
            client.close()
        loop.run(asyncio.sleep(0))


def _descriptor_of(client: RawClient) -> int:
    assert client.socket is not None
    assert client.socket.transport is not None
    descriptor: int = client.socket.transport.get_extra_info("socket").fileno()
    return descriptor


if __name__ == "__main__":
    main()
