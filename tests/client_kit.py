"""A server in this process, and devices with profiles of their own, for tests of the SDK."""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import twinlock
from twinlock.sealing.identity import AccountKeys
from twinlock.server.app import Server
from twinlock.server.settings import Settings

NAME = "ann"
OTHER_NAMES = ("ben", "cleo")
"""Accounts of one device each, whose profiles have their names."""

PASSWORD = "correct horse"


class ShiftedClock:
    """A device's clock, which a test may set."""

    def __init__(self, shift_ms: int = 0) -> None:
        self.shift_ms = shift_ms

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.shift_ms


class World:
    """One server and any number of devices; everything is closed at the end.

    Stretching a password takes long on purpose, so that a test begins with a copy of a server that has an account, and
    of the profiles of its devices "a" and "b".
    """

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.folder = folder
        self.kit = ""
        self.open: list[twinlock.Client] = []
        if template is not None:
            shutil.copytree(template, folder, dirs_exist_ok=True)
            self.kit = (folder / "kit").read_text()
        self.server = self._server(0)

    def _server(self, port: int) -> Server:
        return Server(Settings(data=str(self.folder / "server"), port=port, log_level="error", drain_ms=200))

    @property
    def url(self) -> str:
        return self.server.url

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()

    async def restart(self) -> None:
        """Start the server again at its old address."""
        self.server = self._server(self.server.port)
        await self.server.start()

    async def device(self, profile: str = "a", **options: Any) -> twinlock.Client:
        """Open a profile."""
        db = await twinlock.connect(self.url, self.folder / profile, options=twinlock.Options(**options))
        self.open.append(db)
        return db

    async def unlocked(self, profile: str = "a", **options: Any) -> twinlock.Client:
        """Open a profile whose person has just given the password; that takes no time here."""
        db = await self.device(profile, **options)
        name = profile if profile in OTHER_NAMES else NAME
        db._sudo.grant(AccountKeys((self.folder / f"{name}.keys").read_bytes()))
        return db

    async def close(self) -> None:
        for db in self.open:
            await db.close()
        await self.server.stop()


def make_template(folder: Path) -> Path:
    """Make a server with an account, a space named "home" and two devices, and with two more accounts."""

    def keep_keys(db: twinlock.Client) -> None:
        (folder / f"{db.name}.keys").write_bytes(db._sudo.keys().expose())

    async def make() -> None:
        world = World(folder)
        await world.start()
        async with await twinlock.sign_up(world.url, NAME, PASSWORD, profile=folder / "a") as db:
            kit = db.recovery_kit()
            async with await twinlock.recover(world.url, NAME, kit, PASSWORD, profile=folder / "b"):
                (folder / "kit").write_text(kit)
                keep_keys(db)
        others = [twinlock.sign_up(world.url, name, PASSWORD, profile=folder / name) for name in OTHER_NAMES]
        for db in await asyncio.gather(*others):
            keep_keys(db)
            await db.close()
        await world.close()

    asyncio.run(make())
    return folder


async def until(condition: Callable[[], object], seconds_max: float = 10) -> None:
    """Wait until something holds, looking at it in every turn of the loop."""
    async with asyncio.timeout(seconds_max):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)


def values(docs: Any) -> list[dict[str, Any]]:
    return [dict(doc.data) for doc in docs]
