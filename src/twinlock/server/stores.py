"""What the server keeps things in: an engine, a key service and its own secrets, opened and closed together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from twinlock.contracts import Directory, KeyService, Log
from twinlock.engines.memory import MemoryDirectory, MemoryLog
from twinlock.engines.sqlite import SqliteEngine
from twinlock.keyservice.service import LocalKeyService
from twinlock.server.secrets_file import ServerSecrets, make_secrets, open_secrets
from twinlock.server.settings import Settings

DATABASE_NAME = "twinlock.db"
KEY_SERVICE_FOLDER = "keyservice"


class Stores(msgspec.Struct, frozen=True):
    """Open stores; `close` is awaited once, at the end."""

    log: Log
    directory: Directory
    keys: KeyService
    secrets: ServerSecrets
    close: Callable[[], Awaitable[None]]


async def open_stores(settings: Settings) -> Stores:
    """Open what the settings name; a data folder is made at its first use.

    Raises:
        StoreError: something cannot be opened, or another process has it open.
    """
    return await _open_in_memory() if settings.in_memory else await _open_in_folder(Path(settings.data))


async def _open_in_folder(folder: Path) -> Stores:
    secrets = open_secrets(folder)
    engine = SqliteEngine.open(folder / DATABASE_NAME)
    try:
        keys = LocalKeyService.open(folder / KEY_SERVICE_FOLDER)
    except BaseException:
        await engine.close()
        raise

    async def close() -> None:
        await keys.close()
        await engine.close()

    return Stores(engine.log, engine.directory, keys, secrets, close)


async def _open_in_memory() -> Stores:
    log = MemoryLog()
    # The key service knows only files; these live as long as the process.
    folder = TemporaryDirectory(prefix="twinlock-")
    keys = LocalKeyService.open(folder.name)

    async def close() -> None:
        await keys.close()
        await log.close()
        folder.cleanup()

    return Stores(log, MemoryDirectory(), keys, make_secrets(), close)
