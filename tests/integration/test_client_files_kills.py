"""Devices and servers that are killed in the middle of uploads: what was put is there in the end, whole."""

import asyncio
import random
import shutil
import sys

import pytest

import twinlock
from tests.files_kit import MIB, content_of, files_of, seen, sent
from twinlock.protocol.limits import BLOB_PART_BYTES
from twinlock.testing.processes import ServerProcess

PUT = """
import asyncio, sys
import twinlock

async def main():
    url, profile, source = sys.argv[1:]
    async with await twinlock.connect(url, profile) as db:
        file = await db.space("home").files.put(source)
        print(file.id, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_device_and_a_server_that_are_killed_in_the_middle_of_an_upload_lose_nothing(
    tmp_path, account_template
):
    await kill_in_uploads(tmp_path, account_template, rounds=1, mib=24)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_twenty_kills_of_device_and_server_lose_no_file(tmp_path, account_template):
    await kill_in_uploads(tmp_path, account_template, rounds=20, mib=100)


async def kill_in_uploads(folder, template, rounds: int, mib: int) -> None:
    shutil.copytree(template, folder, dirs_exist_ok=True)
    chance, content = random.Random(rounds), content_of(mib * MIB)
    source = folder / "source"
    source.write_bytes(content)
    shutil.move(folder / "server", folder / "process" / "data")
    files, parts = [], folder / "process" / "data" / "blobs"
    with ServerProcess(folder / "process") as server:
        for _ in range(rounds):
            files.append(await put_and_be_killed(server, folder / "a", source, parts))
            server.kill()
            server.start()
        async with (
            await twinlock.connect(server.url, folder / "a") as ann,
            await twinlock.connect(server.url, folder / "b") as phone,
        ):
            for id in files:
                file = twinlock.FileRef(id)
                await sent(ann, file)
                await seen(phone, file)
                first = chance.randrange(len(content))
                got = b"".join([piece async for piece in files_of(phone).stream(file, first, 3 * MIB)])
                assert got == content[first : first + 3 * MIB]
            await files_of(phone).save(files[-1], folder / "back")
            assert [info.id for info in await files_of(phone).list()] == files
        server.stop()
    assert (folder / "back").read_bytes() == content


async def put_and_be_killed(server, profile, source, parts) -> str:
    """Put a file by a process that is killed once the server has a part of it; return the file's id."""
    device = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PUT, server.url, str(profile), str(source)), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            id = (await device.stdout.readline()).decode().strip()
            assert id, "the device ended before it put the file"
            while not any(path.stat().st_size == BLOB_PART_BYTES for path in parts.rglob(f"*{id}*/*")):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        device.kill()
        await device.wait()
    return id
