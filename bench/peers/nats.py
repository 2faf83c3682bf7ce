"""NATS: JetStream with `sync_interval: always` for durable writes, core NATS for fan-out (which stores nothing)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

from bench.figure import Figure
from bench.machine import free_port
from bench.peers.child import program, running, wait_for_port
from bench.peers.plain_socket import PlainSocket, open_plain
from bench.scale import PAYLOAD_BYTES, Scale

IN_FLIGHT = 64
DELIVERIES_OUTSTANDING = 256
PAYLOAD = bytes(PAYLOAD_BYTES)
PING = b"PING\r\n"


async def open_nats(port: int, receiver: Callable[[bytes], None]) -> PlainSocket:
    """Connect and introduce this connection; pings are answered, everything else goes to the receiver."""

    def receive(data: bytes) -> None:
        # What the protocol says by the way may stand in one chunk with messages, whose bytes are counted.
        if PING in data:
            socket.write(b"PONG\r\n")
            data = data.replace(PING, b"")
        if data.startswith(b"INFO"):
            data = data.partition(b"\r\n")[2]
        if data:
            receiver(data)

    socket = await open_plain(port, receive)
    socket.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n')
    return socket


async def measure(folder: Path, scale: Scale) -> list[Figure]:
    """Measure durable writes with 64 in flight and, without storage, fan-out to subscribers."""
    port = free_port()
    command = [program("nats-server"), "-c", str(_write_config(folder, port))]
    with running(command, folder / "nats.log") as child:
        await wait_for_port(port, child)
        return [await _durable_writes(port, scale), await _fan_out(port, scale)]


def _write_config(folder: Path, port: int) -> Path:
    config = folder / "nats.conf"
    store = f'jetstream {{ store_dir: "{folder / "store"}", sync_interval: always }}'
    config.write_text(f"listen: 127.0.0.1:{port}\n{store}\n", encoding="utf-8")
    return config


async def _durable_writes(port: int, scale: Scale) -> Figure:
    created, finished = asyncio.Event(), asyncio.Event()
    total = scale.count(6_000, 300)
    message = b"PUB bench.w _R.w %d\r\n%b\r\n" % (len(PAYLOAD), PAYLOAD)
    acked = sent = 0

    def receive(data: bytes) -> None:
        nonlocal acked, sent
        if not created.is_set():
            if b"_R.c" in data:
                created.set()
            return
        new = data.count(b"MSG _R.w ")
        acked += new
        more = min(new, total - sent)
        if more:
            sent += more
            socket.write(message * more)
        if acked >= total:
            finished.set()

    socket = await open_nats(port, receive)
    stream = json.dumps({"name": "BENCH", "subjects": ["bench.w"], "storage": "file", "num_replicas": 1}).encode()
    socket.write(b"SUB _R.* 1\r\nPUB $JS.API.STREAM.CREATE.BENCH _R.c %d\r\n%b\r\n" % (len(stream), stream))
    await asyncio.wait_for(created.wait(), 10)
    started = time.perf_counter()
    sent = IN_FLIGHT
    socket.write(message * IN_FLIGHT)
    await asyncio.wait_for(finished.wait(), 120)
    rate = total / (time.perf_counter() - started)
    return Figure("writers", "durable writes, 64 in flight", rate, "/s", "higher", system="NATS synced")


async def _fan_out(port: int, scale: Scale) -> Figure:
    subscribers, total = scale.count(1_000, 50), scale.count(3_000, 200)
    received_bytes = 0
    received = asyncio.Event()
    message = b"PUB fan %d\r\n%b\r\n" % (len(PAYLOAD), PAYLOAD)
    delivered_bytes = len(b"MSG fan 1 %d\r\n%b\r\n" % (len(PAYLOAD), PAYLOAD))

    def receive(data: bytes) -> None:
        nonlocal received_bytes
        received_bytes += len(data)
        received.set()

    sockets = [await open_nats(port, receive) for _ in range(subscribers)]
    for socket in sockets:
        socket.write(b"SUB fan 1\r\n")
    await asyncio.sleep(0.5)
    writer = await open_nats(port, lambda data: None)
    expected = total * subscribers
    sent, started = 0, time.perf_counter()
    while (done := received_bytes // delivered_bytes) < expected:
        room = min(DELIVERIES_OUTSTANDING - (sent - done // subscribers), total - sent)
        if room > 0:
            writer.write(message * room)
            sent += room
        received.clear()
        await asyncio.wait_for(received.wait(), 20)
    rate = expected / (time.perf_counter() - started)
    name = f"deliveries to {subscribers:,}"
    return Figure("fanout", name, rate, "/s", "higher", system="NATS", note="core NATS, nothing stored")
