"""A database knows which server it is: without its `server.key` none serves it, for no device would take it."""

import shutil

import pytest

from tests.backup_kit import now_ms, opened
from twinlock.backup import make_backup, open_backup, restore
from twinlock.engines.sqlite import SqliteEngine
from twinlock.errors import StoreError
from twinlock.server import Settings
from twinlock.server.stores import IDENTITY_KEY, open_stores


@pytest.fixture
def data(account_template, tmp_path):
    """The data folder of a server with accounts that nobody serves."""
    shutil.copytree(account_template / "server", tmp_path / "server")
    return tmp_path / "server"


async def started(folder):
    """Open what a server opens at its start, and return who it is."""
    stores = await open_stores(Settings(data=str(folder), port=0))
    await stores.close()
    return stores.secrets.server_id


async def forget_identity(folder):
    engine = SqliteEngine.open(folder / "twinlock.db")
    await engine.directory.delete(IDENTITY_KEY)
    await engine.close()


@pytest.mark.parametrize("is_of_an_earlier_version", [False, True])
async def test_a_database_without_its_servers_key_is_not_served(data, is_of_an_earlier_version):
    if is_of_an_earlier_version:
        await forget_identity(data)
    (data / "server.key").unlink()

    with pytest.raises(StoreError, match=r"server\.key is missing"):
        await started(data)
    assert not (data / "server.key").exists(), "no other key stands where the right one belongs"


async def test_a_database_with_another_servers_key_is_not_served(data, tmp_path):
    await started(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "server.key", data)

    with pytest.raises(StoreError, match=r"server\.key is that of another server"):
        await started(data)


async def test_a_database_of_an_earlier_version_notes_its_server_once(data, tmp_path):
    await forget_identity(data)
    first = await started(data)
    await started(tmp_path / "other")
    shutil.move(data / "server.key", tmp_path / "kept")
    shutil.copy(tmp_path / "other" / "server.key", data)

    with pytest.raises(StoreError, match=r"server\.key"):
        await started(data)
    shutil.copy(tmp_path / "kept", data / "server.key")
    assert await started(data) == first


@pytest.mark.parametrize("is_of_an_earlier_version", [False, True])
async def test_a_restored_database_wants_the_old_servers_key(data, tmp_path, is_of_an_earlier_version):
    first = await started(data)
    if is_of_an_earlier_version:
        await forget_identity(data)
    new = tmp_path / "new"
    # Started once before it was told that there is a backup.
    await started(new)
    async with opened(data) as holdings, open_backup(str(tmp_path / "backup"), is_made=True) as store:
        manifest = (await make_backup(holdings, store, now_ms)).manifest
        async with opened(new) as into:
            await restore(manifest, store, into, now_ms)

    if not is_of_an_earlier_version:
        with pytest.raises(StoreError, match=r"server\.key is that of another server"):
            await started(new)
    shutil.copy(data / "server.key", new)
    assert await started(new) == first
