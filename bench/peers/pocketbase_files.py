"""PocketBase's files: one uploaded as a field of a record, and downloaded again."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from bench.figure import Figure
from bench.machine import free_port
from bench.peers.child import program, running, wait_for_port
from bench.peers.pocketbase import ask, make_superuser, request, sign_in
from bench.scale import Scale
from bench.scenarios.files import COPY_BYTES, MIB, make_file

_BOUNDARY = "bench-bench-bench"


async def measure(folder: Path, scale: Scale) -> list[Figure]:
    """Measure how fast a large file is uploaded and downloaded."""
    size = scale.count(256, 8) * MIB
    source = folder / "large.bin"
    await asyncio.to_thread(make_file, source, size)
    port, binary = free_port(), program("pocketbase")
    data = ["--dir", str(folder / "data")]
    make_superuser([binary, "superuser", "upsert", *data])
    with running([binary, "serve", "--http", f"127.0.0.1:{port}", *data], folder / "pocketbase.log") as child:
        await wait_for_port(port, child)
        await _create_collection(port, size)
        started = time.perf_counter()
        record = await _upload(port, source, size)
        uploaded_s = time.perf_counter() - started
        started = time.perf_counter()
        await _download(port, f"/api/files/files/{record['id']}/{record['file']}", folder / "read.bin", size)
        downloaded_s = time.perf_counter() - started
    what = f"a file of {size // MIB} MiB"
    return [
        Figure(name, f"{what}: {name}ed", size / MIB / taken_s, "MiB/s", "higher", system="PocketBase", note=note)
        for name, taken_s, note in (
            ("upload", uploaded_s, "neither sealed nor synced to disk"),
            ("download", downloaded_s, "not opened: it is not sealed"),
        )
    ]


async def _create_collection(port: int, size: int) -> None:
    rules = dict.fromkeys(("listRule", "viewRule", "createRule"), "")
    fields = [{"name": "file", "type": "file", "maxSelect": 1, "maxSize": 2 * size}]
    body = json.dumps({"name": "files", "type": "base", "fields": fields, **rules}).encode()
    made = await ask(port, request("POST", "/api/collections", body, await sign_in(port)))
    assert b" 200 " in made[:20], made[:300]


async def _upload(port: int, source: Path, size: int) -> dict[str, str]:
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'.encode()
    end = f"\r\n--{_BOUNDARY}--\r\n".encode()
    head = (
        "POST /api/collections/files/records HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
        f"Content-Length: {len(part) + size + len(end)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + part)
    with source.open("rb") as file:
        while piece := file.read(COPY_BYTES):
            writer.write(piece)
            await writer.drain()
    writer.write(end)
    answer = await reader.read()
    writer.close()
    assert b" 200 " in answer[:20], answer[:300]
    record: dict[str, str] = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])
    return record


async def _download(port: int, path: str, target: Path, size: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    received = 0
    with target.open("wb") as file:
        while piece := await reader.read(COPY_BYTES):
            file.write(piece)
            received += len(piece)
    writer.close()
    assert received == size, f"{received} of {size} bytes"
