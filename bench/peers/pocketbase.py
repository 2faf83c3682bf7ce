"""PocketBase: writes through its REST API, fan-out through its realtime API.

It writes SQLite with `synchronous=NORMAL`: a write is acknowledged before it is on disk.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.figure import Figure
from bench.machine import free_port
from bench.peers.child import program, running, wait_for_port
from bench.peers.plain_socket import PlainSocket, open_plain
from bench.scale import PAYLOAD_BYTES, Scale

IN_FLIGHT = 64
WRITERS_DURING_FAN_OUT = 4
NOT_DURABLE = "acknowledged before it is on disk (synchronous=NORMAL)"
_EMAIL, _PASSWORD = "bench@example.org", "bench-bench-bench"
_RECORD = json.dumps({"text": "x" * PAYLOAD_BYTES}).encode()
_EVENT = b"event:bench/*"


def request(method: str, path: str, body: bytes = b"", token: str = "") -> bytes:
    """Return the bytes of a request."""
    authorization = f"Authorization: {token}\r\n" if token else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}Content-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def ask(port: int, data: bytes) -> bytes:
    """Send one request on a connection of its own and return what comes back first."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    socket = await open_plain(port, lambda chunk: None if answer.done() else answer.set_result(chunk))
    socket.write(data)
    try:
        return await asyncio.wait_for(answer, 20)
    finally:
        socket.close()


async def measure(folder: Path, scale: Scale) -> list[Figure]:
    """Measure writes with 64 in flight and fan-out to subscribers."""
    port, binary = free_port(), program("pocketbase")
    data = ["--dir", str(folder / "data")]
    make_superuser([binary, "superuser", "upsert", *data])
    with running([binary, "serve", "--http", f"127.0.0.1:{port}", *data], folder / "pocketbase.log") as child:
        await wait_for_port(port, child)
        await _create_collection(port)
        return [await _writes(port, scale), await _fan_out(port, scale)]


def make_superuser(command: list[str]) -> None:
    """Make who may create collections, by PocketBase's own command without name and password."""
    subprocess.run([*command[:3], _EMAIL, _PASSWORD, *command[3:]], check=True, capture_output=True)


async def sign_in(port: int) -> str:
    """Return a token of whom `make_superuser` made."""
    login = json.dumps({"identity": _EMAIL, "password": _PASSWORD}).encode()
    answer = await ask(port, request("POST", "/api/collections/_superusers/auth-with-password", login))
    token: str = json.loads(answer.partition(b"\r\n\r\n")[2])["token"]
    return token


async def _create_collection(port: int) -> None:
    collection = {
        "name": "bench",
        "type": "base",
        "fields": [{"name": "text", "type": "text"}],
        **dict.fromkeys(("listRule", "viewRule", "createRule", "updateRule", "deleteRule"), ""),
    }
    made = await ask(port, request("POST", "/api/collections", json.dumps(collection).encode(), await sign_in(port)))
    assert b" 200 " in made[:20], made[:300]


async def _writes(port: int, scale: Scale) -> Figure:
    total = scale.count(10_000, 300)
    rate = await _write_closed_loop(port, total, IN_FLIGHT)
    return Figure("writers", "writes, 64 in flight", rate, "/s", "higher", system="PocketBase", note=NOT_DURABLE)


async def _write_closed_loop(port: int, total: int, in_flight: int) -> float:
    create = request("POST", "/api/collections/bench/records", _RECORD)
    finished = asyncio.Event()
    sent = answered = 0

    def receiver_of(holder: list[PlainSocket]) -> Callable[[bytes], None]:
        def receive(data: bytes) -> None:
            nonlocal sent, answered
            answered += data.count(b"HTTP/1.1 200")
            if sent < total:
                sent += 1
                holder[0].write(create)
            elif answered >= total:
                finished.set()

        return receive

    holders: list[list[PlainSocket]] = [[] for _ in range(in_flight)]
    for holder in holders:
        holder.append(await open_plain(port, receiver_of(holder)))
    started = time.perf_counter()
    sent = in_flight
    for holder in holders:
        holder[0].write(create)
    await asyncio.wait_for(finished.wait(), 120)
    rate = total / (time.perf_counter() - started)
    for holder in holders:
        holder[0].close()
    return rate


async def _fan_out(port: int, scale: Scale) -> Figure:
    subscribers, total = scale.count(1_000, 20), scale.count(300, 20)
    delivered = 0
    all_delivered = asyncio.Event()

    def receive(data: bytes) -> None:
        nonlocal delivered
        delivered += data.count(_EVENT)
        if delivered >= total * subscribers:
            all_delivered.set()

    sockets = [await _subscribe(port, receive) for _ in range(subscribers)]
    started = time.perf_counter()
    await _write_closed_loop(port, total, WRITERS_DURING_FAN_OUT)
    await asyncio.wait_for(all_delivered.wait(), 120)
    rate = total * subscribers / (time.perf_counter() - started)
    for socket in sockets:
        socket.close()
    return Figure(
        "fanout", f"deliveries to {subscribers:,}", rate, "/s", "higher", system="PocketBase", note=NOT_DURABLE
    )


async def _subscribe(port: int, receive: Callable[[bytes], None]) -> PlainSocket:
    connected: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    greeting = bytearray()

    def greet(data: bytes) -> None:
        greeting.extend(data)
        _, found, rest = bytes(greeting).partition(b'{"clientId":"')
        if found and b'"' in rest and not connected.done():
            connected.set_result(rest.partition(b'"')[0].decode())

    socket = await open_plain(port, greet)
    socket.write(request("GET", "/api/realtime"))
    client = await asyncio.wait_for(connected, 20)
    wish = json.dumps({"clientId": client, "subscriptions": ["bench/*"]}).encode()
    answer = await ask(port, request("POST", "/api/realtime", wish))
    assert b" 204 " in answer[:20], answer[:300]
    socket.receiver = receive
    return socket
