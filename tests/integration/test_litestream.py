"""A server on SQLite beside Litestream: its disk is lost, the copy comes back, and devices heal the last moments."""

import asyncio
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import twinlock
from tests.client_kit import until, values
from twinlock.cli.commands import commands
from twinlock.testing.processes import ServerProcess

PROGRAM = Path(sys.executable).with_name("litestream")
SHIPPED = Path(__file__).parents[2] / "deploy" / "litestream" / "litestream.yml"


class Litestream:
    """The shipped configuration, with a folder in place of the bucket."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.copy = folder / "copy"
        self.database = data / "twinlock.db"
        self.config = folder / "litestream.yml"
        shipped = yaml.safe_load(SHIPPED.read_text())
        (database,) = shipped["dbs"]
        database["path"] = str(self.database)
        database["replica"] = {"type": "file", "path": str(self.copy), "sync-interval": "50ms"}
        self.config.write_text(yaml.safe_dump(shipped))

    @contextmanager
    def replicating(self):
        log = self.config.with_suffix(".log").open("ab")
        child = subprocess.Popen(
            [PROGRAM, "replicate", "-config", self.config],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            child.kill()
            child.wait()
            log.close()

    @property
    def copied_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.copy.rglob("*") if path.is_file())

    async def has_copied(self) -> None:
        """Wait until what was written is in the copy."""
        before, quiet = -1, 0
        while quiet < 4:
            quiet = quiet + 1 if self.copied_bytes == before and before > 0 else 0
            before = self.copied_bytes
            await asyncio.sleep(0.06)

    def restore(self) -> None:
        command = [PROGRAM, "restore", "-config", self.config, "-o", self.database, self.database]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(account_template, tmp_path):
    """A server's data that nobody serves yet, and the profiles of two devices."""
    shutil.copytree(account_template, tmp_path / "world")
    shutil.copytree(tmp_path / "world" / "server", tmp_path / "server" / "data")
    return tmp_path


@pytest.mark.slow
@pytest.mark.e2e
async def test_a_lost_disk_comes_back_and_devices_heal_the_last_moments(folder):
    with ServerProcess(folder / "server") as server:
        stream = Litestream(folder, server.data)
        a = await twinlock.connect(server.url, folder / "world" / "a")
        b = await twinlock.connect(server.url, folder / "world" / "b")
        async with a, b:
            todos, theirs = (db.space("home").collection("todos") for db in (a, b))
            with stream.replicating():
                for number in range(5):
                    await todos.add({"n": number})
                await a.synced()
                await stream.has_copied()
            # Litestream is gone before the machine is: what comes now is nowhere but here.
            for number in range(5, 8):
                await todos.add({"n": number})
            await theirs.add({"n": 8})
            await asyncio.gather(a.synced(), b.synced())
            server.kill()
            lose_the_disk(server.data)

            await asyncio.to_thread(stream.restore)
            restored = await asyncio.to_thread(CliRunner().invoke, commands, ["restored", str(server.data)])
            assert restored.exit_code == 0, restored.output
            server.start()

            await asyncio.gather(a.synced(), b.synced())
            await theirs.add({"n": 9})
            async with asyncio.timeout(20):
                while await shown(todos) != [*range(10)] or await shown(theirs) != [*range(10)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await until(lambda: a.pending_count == b.pending_count == 0)
        server.stop()


async def shown(collection):
    return [doc["n"] for doc in values(await collection.order_by("n").get())]


def lose_the_disk(data: Path) -> None:
    """Lose all but what is kept elsewhere: the server's key, and the key service."""
    for path in data.iterdir():
        if path.name.startswith((".twinlock.db", "twinlock.db")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
