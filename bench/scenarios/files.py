"""Files: how fast one goes from a device to the server and from there to another device, beside a plain copy."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import twinlock
from bench.figure import Figure
from bench.scale import Scale
from bench.scenarios.devices import SPACE, first_device, settled
from bench.server_process import serving
from twinlock.client.client import Client

MIB = 1 << 20
COPY_BYTES = MIB


async def files(folder: Path, scale: Scale) -> list[Figure]:
    """Measure a large file: put until it is safe here, until the server has it, read by another device; and `cp`."""
    size = scale.count(256, 8) * MIB
    source = folder / "large.bin"
    await asyncio.to_thread(make_file, source, size)
    with serving(folder) as server:
        async with first_device(server, folder) as (writer, name, kit):
            put_s, uploaded_s = await _put(writer, source)
            async with await twinlock.recover(server.url, name, kit, profile=folder / "device-b") as reader:
                read_s = await _read(reader, folder / "read.bin")
    same = await asyncio.to_thread(_same, source, folder / "read.bin")
    if not same:
        raise RuntimeError("what was read is not what was put")
    copied_s = await asyncio.to_thread(copy_synced, source, folder / "copy.bin")
    what = f"a file of {size // MIB} MiB"
    return [
        _rate("upload", f"{what}: put, until the server has it", size, uploaded_s),
        _rate("upload", f"{what}: put, sealed and safe on the device", size, put_s),
        _rate("upload", f"{what}: copied and synced", size, copied_s, "cp"),
        _rate("download", f"{what}: read, opened and saved by another device", size, read_s),
        _rate("download", f"{what}: copied and synced", size, copied_s, "cp"),
    ]


def _rate(scenario: str, name: str, size: int, taken_s: float, system: str = "twinlock") -> Figure:
    return Figure(scenario, name, size / MIB / taken_s, "MiB/s", "higher", system=system)


async def _put(writer: Client, source: Path) -> tuple[float, float]:
    space = writer.space(SPACE)
    started = time.perf_counter()
    ref = await space.files.put(source)
    put_s = time.perf_counter() - started
    await space.files.uploaded(ref)
    uploaded_s = time.perf_counter() - started
    await space.collection("docs").doc("one").set({"file": ref})
    await writer.synced()
    return put_s, uploaded_s


async def _read(reader: Client, target: Path) -> float:
    document = reader.space(SPACE).collection("docs").doc("one")

    async def has_it() -> bool:
        return await document.get() is not None

    await settled(has_it)
    value = await document.get()
    assert value is not None
    started = time.perf_counter()
    await reader.space(SPACE).files.save(value["file"], target)
    return time.perf_counter() - started


def make_file(path: Path, size: int) -> None:
    """Write a file of random bytes."""
    with path.open("wb") as file:
        for _ in range(size // COPY_BYTES):
            file.write(os.urandom(COPY_BYTES))


def copy_synced(source: Path, target: Path) -> float:
    """Copy a file as `cp` does, have it on disk, and return the seconds that took."""
    started = time.perf_counter()
    with source.open("rb") as read, target.open("wb") as written:
        while piece := read.read(COPY_BYTES):
            written.write(piece)
        written.flush()
        os.fsync(written.fileno())
    return time.perf_counter() - started


def _same(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(COPY_BYTES):
            if second.read(COPY_BYTES) != piece:
                return False
        return not second.read(1)
