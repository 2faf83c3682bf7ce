"""What a key service does over time: root keys rotate and die, shredded spaces stay shredded."""

import asyncio
import shutil
import sqlite3
from contextlib import closing

import pytest

from tests.client_kit import until
from twinlock.errors import KeyServiceError, LeaseRefusedError, LogInvalidError, StoreError
from twinlock.ids import Epoch, SpaceId
from twinlock.keyservice import KeyServiceSettings, LocalKeyService
from twinlock.keyservice.app import KeyServiceProcess
from twinlock.keyservice.root_keys import SLICE_ROWS
from twinlock.keyservice.settings import DAY_MS, ProcessSettings
from twinlock.keyservice.wrapper import service_key_context
from twinlock.keyservice.wrapper_file import FileKeyWrapper
from twinlock.protocol.space_log import Role
from twinlock.sealing.space_entries import shred_entry
from twinlock.server import Server, Settings
from twinlock.testing.contracts.key_requests import lease, opened, registered
from twinlock.testing.contracts.members import NOW_MS, OwnedSpace

ROTATION_DAYS, BACKUP_DAYS = 30, 20
SETTINGS = KeyServiceSettings(root_rotation_days=ROTATION_DAYS, backup_days=BACKUP_DAYS)
FIRST_SCHEMA = """
ALTER TABLE keys RENAME TO newer_keys;
CREATE TABLE keys (
    space BLOB NOT NULL, epoch INTEGER NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (space, epoch)
) WITHOUT ROWID;
INSERT INTO keys SELECT space, epoch, wrapped FROM newer_keys;
DROP TABLE newer_keys;
DROP INDEX pending_by_root_version;
ALTER TABLE pending DROP COLUMN root_version;
DROP TABLE root_versions;
DROP TABLE denied;
PRAGMA user_version = 1;
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "keyservice"


def open_keys(folder) -> LocalKeyService:
    return LocalKeyService.open(folder, SETTINGS, now_ms=lambda: NOW_MS)


@pytest.fixture
async def keys(folder):
    keys = open_keys(folder)
    yield keys
    await keys.close()


def versions(folder) -> list[int]:
    return FileKeyWrapper.load(folder / "root.key").versions


def rows(folder, sql: str) -> list:
    with closing(sqlite3.connect(folder / "keyservice.db")) as database, database:
        return database.execute(sql).fetchall()


def on_disk(folder) -> bytes:
    """Every byte of the database and of its journal."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("keyservice.db*")))


async def events(keys) -> list[str]:
    return [record.event for record in await keys.read_ledger()]


def plant(folder, count: int) -> None:
    """Put keys into a closed store as if many spaces had been opened."""
    wrapper = FileKeyWrapper.load(folder / "root.key")
    [(identity,)] = rows(folder, "SELECT value FROM meta WHERE name = 'keyservice_id'")
    spaces = [SpaceId(number.to_bytes(16, "big")) for number in range(count)]
    wrapped = [(space, wrapper.wrap(bytes(32), service_key_context(space, Epoch(1), identity)), 1) for space in spaces]
    with closing(sqlite3.connect(folder / "keyservice.db")) as database, database:
        database.executemany("INSERT INTO keys (space, epoch, wrapped, root_version) VALUES (?, 1, ?, ?)", wrapped)


class TestRootKeysOverTime:
    async def test_a_version_lives_for_its_days_and_dies_when_no_backup_needs_it(self, keys, folder):
        space = await opened(keys, epochs=2)
        day = DAY_MS
        await keys.tend(NOW_MS)
        await keys.tend(NOW_MS + ROTATION_DAYS * day - 1)
        assert versions(folder) == [1]

        rotated_ms = NOW_MS + ROTATION_DAYS * day
        await keys.tend(rotated_ms)
        await keys.tend(rotated_ms + BACKUP_DAYS * day - 1)
        assert versions(folder) == [1, 2]
        assert rows(folder, "SELECT DISTINCT root_version FROM keys") == [(2,)]

        await keys.tend(rotated_ms + BACKUP_DAYS * day)

        assert versions(folder) == [2]
        assert (await events(keys))[-3:] == ["root_rotated", "root_retired", "root_destroyed"]
        records = await keys.read_ledger()
        assert [record.root_version for record in records[-3:]] == [2, 1, 1]
        assert len((await lease(keys, space.owner, space.id, 1, 2)).grants) == 2
        await keys.close()
        again = open_keys(folder)
        assert (await again.verify_ledger()).intact
        await again.close()

    async def test_more_keys_than_a_slice_are_wrapped_anew_and_leases_are_given_meanwhile(self, keys, folder):
        space = await opened(keys)
        count = 20 * SLICE_ROWS
        plant(folder, count)
        rotating = asyncio.get_running_loop().create_task(keys.rotate_root_key())

        given = 0
        while not rotating.done():
            given += len((await lease(keys, space.owner, space.id, 1)).grants)

        assert await rotating == count + 1
        assert given > 10
        assert rows(folder, "SELECT DISTINCT root_version FROM keys") == [(2,)]

    async def test_what_a_crash_interrupted_goes_on_at_the_next_time(self, keys, folder):
        space = await opened(keys, epochs=3)
        await keys.tend(NOW_MS)
        await keys.close()
        # The version was made and the process was killed before anything was written down.
        FileKeyWrapper.load(folder / "root.key").rotate()

        again = open_keys(folder)
        await again.tend(NOW_MS + 1)

        assert rows(folder, "SELECT DISTINCT root_version FROM keys") == [(2,)]
        assert rows(folder, "SELECT version, retired_ms > 0 FROM root_versions ORDER BY version") == [(1, 1), (2, 0)]
        assert len((await lease(again, space.owner, space.id, 1, 2, 3)).grants) == 3
        await again.close()

    async def test_a_destruction_that_was_not_written_down_is_written_down_later(self, keys, folder):
        await opened(keys)
        await keys.rotate_root_key()
        await keys.close()
        FileKeyWrapper.load(folder / "root.key").destroy_version(1)

        again = open_keys(folder)
        await again.tend(NOW_MS + BACKUP_DAYS * DAY_MS)

        assert (await events(again))[-1] == "root_destroyed"
        assert rows(folder, "SELECT destroyed_ms > 0 FROM root_versions WHERE version = 1") == [(1,)]
        await again.close()

    async def test_a_version_that_still_wraps_something_is_not_destroyed(self, keys, folder):
        await opened(keys)
        await keys.close()
        FileKeyWrapper.load(folder / "root.key").rotate()
        again = open_keys(folder)

        with pytest.raises(StoreError, match="still wrapped"):
            await again.destroy_root_key_version(1)

        assert versions(folder) == [1, 2]
        await again.close()

    async def test_a_rotation_period_of_0_keeps_the_root_key(self, folder):
        keys = LocalKeyService.open(folder, KeyServiceSettings(root_rotation_days=0))
        await keys.tend(NOW_MS)
        await keys.tend(NOW_MS + 10_000 * DAY_MS)

        assert versions(folder) == [1]
        await keys.close()

    async def test_a_database_of_the_first_schema_is_taken_over(self, keys, folder):
        space = await opened(keys, epochs=2)
        pending, _ = await space.pend(keys)
        await keys.close()
        (folder / "denied.txt").unlink()
        with closing(sqlite3.connect(folder / "keyservice.db")) as database:
            database.executescript(FIRST_SCHEMA)

        again = open_keys(folder)
        await again.tend(NOW_MS)

        assert rows(folder, "SELECT DISTINCT root_version FROM keys") == [(1,)]
        assert len((await lease(again, space.owner, space.id, 1, 2)).grants) == 2
        await again.append_log(space.log, len(space.entries), [space.epoch_entry(pending)])
        assert (folder / "denied.txt").exists()
        await again.close()


class TestShredding:
    async def test_the_keys_are_gone_from_the_files_and_the_ledger_says_so(self, keys, folder):
        space = await opened(keys, epochs=2)
        await space.pend(keys)
        wrapped = [row[0] for row in rows(folder, "SELECT wrapped FROM keys UNION SELECT wrapped FROM pending")]
        assert len(wrapped) == 3

        await space.shred(keys)
        await keys.close()

        stored = b"".join(path.read_bytes() for path in folder.glob("keyservice.db*"))
        assert [each for each in wrapped if each in stored] == []
        assert (folder / "denied.txt").read_text() == space.id.hex() + "\n"
        again = open_keys(folder)
        record = (await again.read_ledger())[-1]
        assert (record.event, record.space, record.keys_count, record.time_ms) == ("denied", space.id.hex(), 3, NOW_MS)
        await again.close()

    async def test_a_restored_backup_brings_no_key_back(self, keys, folder):
        """Not even into the database: the rows are deleted before anything is answered."""
        space, other = await opened(keys), await opened(keys)
        await keys.close()
        backup = (folder / "keyservice.db").read_bytes()
        again = open_keys(folder)
        await space.shred(again)
        await again.close()
        (folder / "keyservice.db").write_bytes(backup)

        restored = open_keys(folder)

        assert rows(folder, "SELECT hex(space) FROM keys") == [(other.id.hex().upper(),)]
        assert (await events(restored))[-1] == "purged"
        assert (await restored.verify_ledger()).intact
        with pytest.raises(LeaseRefusedError):
            await lease(restored, space.owner, space.id, 1)
        assert len((await lease(restored, other.owner, other.id, 1)).grants) == 1
        await restored.close()

    async def test_the_backups_copy_is_dead_once_the_root_key_of_its_time_is_destroyed(self, keys, folder):
        space = await opened(keys)
        await keys.close()
        backup = (folder / "keyservice.db").read_bytes()
        again = open_keys(folder)
        await space.shred(again)
        await again.tend(NOW_MS)
        rotated_ms = NOW_MS + ROTATION_DAYS * DAY_MS
        await again.tend(rotated_ms)
        await again.tend(rotated_ms + BACKUP_DAYS * DAY_MS)
        await again.close()
        # The attacker restores everything but the root key, and empties the deny list.
        (folder / "keyservice.db").write_bytes(backup)
        (folder / "denied.txt").write_text("")

        with pytest.raises(StoreError, match="does not exist"):
            open_keys(folder)

    async def test_a_missing_deny_list_stops_the_service(self, keys, folder):
        await opened(keys)
        await keys.close()
        (folder / "denied.txt").unlink()

        with pytest.raises(StoreError, match="deny list"):
            open_keys(folder)

    async def test_an_older_deny_list_is_mended_by_the_database(self, keys, folder):
        space = await opened(keys)
        await space.shred(keys)
        await keys.close()
        (folder / "denied.txt").write_text("")

        again = open_keys(folder)

        assert (folder / "denied.txt").read_text() == space.id.hex() + "\n"
        with pytest.raises(LeaseRefusedError):
            await lease(again, space.owner, space.id, 1)
        await again.close()

    async def test_the_deny_list_may_lie_elsewhere(self, folder, tmp_path):
        place = tmp_path / "elsewhere.txt"
        keys = LocalKeyService.open(folder, KeyServiceSettings(deny_list_file=str(place)))
        space = await opened(keys)
        await space.shred(keys)
        await keys.close()

        assert place.read_text() == space.id.hex() + "\n"
        assert not (folder / "denied.txt").exists()

    async def test_a_deny_list_that_cannot_be_written_leaves_the_space_whole(self, keys, folder):
        space = await opened(keys)
        (folder / "denied.txt").chmod(0o600)
        (folder / "denied.txt").rename(folder / "moved.txt")
        (folder / "denied.txt").mkdir()

        with pytest.raises(StoreError):
            await space.shred(keys)

        assert len((await lease(keys, space.owner, space.id, 1)).grants) == 1
        (folder / "denied.txt").rmdir()
        (folder / "moved.txt").rename(folder / "denied.txt")
        await space.shred(keys)
        with pytest.raises(LeaseRefusedError):
            await lease(keys, space.owner, space.id, 1)

    async def test_a_shred_that_failed_halfway_denies_the_space_and_is_finished_later(self, keys, folder):
        space = await opened(keys)
        broken = "CREATE TRIGGER broken BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'full'); END"
        rows(folder, broken)
        with pytest.raises(KeyServiceError):
            await space.shred(keys)
        assert rows(folder, "SELECT count(*) FROM keys") == [(1,)]
        rows(folder, "DROP TRIGGER broken")

        with pytest.raises(LeaseRefusedError):
            await lease(keys, space.owner, space.id, 1)
        await keys.close()
        again = open_keys(folder)
        assert rows(folder, "SELECT count(*) FROM keys") == [(0,)]
        await space.shred(again)

        assert (await events(again))[-2:] == ["purged", "denied"]
        assert (await again.append_log(space.log, 0, space.entries)).seq == len(space.entries)
        assert (await again.verify_ledger()).intact
        await again.close()

    async def test_the_disk_holds_a_shredded_key_nowhere_while_the_service_goes_on(self, keys, folder):
        space, other = await opened(keys, epochs=2), await opened(keys)
        wrapped = [row[0] for row in rows(folder, "SELECT wrapped FROM keys ORDER BY epoch")]
        assert all(key in on_disk(folder) for key in wrapped)

        await space.shred(keys)

        kept = [row[0] for row in rows(folder, "SELECT wrapped FROM keys")]
        assert [key for key in wrapped if key in on_disk(folder)] == kept
        assert len((await lease(keys, other.owner, other.id, 1)).grants) == 1

    async def test_somebody_who_reads_the_database_only_delays_that(self, keys, folder):
        space = await opened(keys)
        [(wrapped,)] = rows(folder, "SELECT wrapped FROM keys")
        with closing(sqlite3.connect(folder / "keyservice.db")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM keys").fetchone()
            await space.shred(keys)
            assert wrapped in on_disk(folder)

        await keys.tend(NOW_MS)

        assert wrapped not in on_disk(folder)

    async def test_what_a_kill_left_of_it_goes_with_the_next_start(self, keys, folder, tmp_path):
        space = await opened(keys)
        [(wrapped,)] = rows(folder, "SELECT wrapped FROM keys")
        with closing(sqlite3.connect(folder / "keyservice.db")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM keys").fetchone()
            await space.shred(keys)
            shutil.copytree(folder, tmp_path / "killed")
        assert wrapped in on_disk(tmp_path / "killed")

        again = open_keys(tmp_path / "killed")

        assert wrapped not in on_disk(tmp_path / "killed")
        await again.close()

    async def test_only_an_owner_shreds(self, keys):
        space, admin = await opened(keys), await registered(keys)
        await space.admit(keys, admin, Role.ADMIN)

        with pytest.raises(LogInvalidError):
            await space.append(keys, shred_entry(admin.keys, space.state))

        assert len((await lease(keys, admin, space.id, 1)).grants) == 1

    async def test_a_space_that_is_made_and_shredded_in_one_append_has_no_keys(self, keys, folder):
        space = OwnedSpace(await registered(keys))
        epoch_keys, _ = await space.pend(keys)
        space.entries.append(space.epoch_entry(epoch_keys))
        await keys.append_log(space.log, 0, [*space.entries, shred_entry(space.owner.keys, space.state)])

        assert rows(folder, "SELECT count(*) FROM keys") == [(0,)]
        with pytest.raises(LeaseRefusedError):
            await lease(keys, space.owner, space.id, 1)


class TestWhoTends:
    async def test_a_process_of_its_own_tends_itself(self, folder):
        clock = Clock()
        settings = ProcessSettings(data=str(folder), port=0, nodes=["ab" * 32], tend_interval_s=0.02, custody=SETTINGS)
        service = KeyServiceProcess(settings, clock)
        await service.start()
        await until(lambda: rows(folder, "SELECT version FROM root_versions"))

        clock.ms += ROTATION_DAYS * DAY_MS
        await until(lambda: versions(folder) == [1, 2])
        await until(lambda: rows(folder, "SELECT retired_ms > 0 FROM root_versions WHERE version = 1") == [(1,)])
        clock.ms += BACKUP_DAYS * DAY_MS
        await until(lambda: versions(folder) == [2])

        await service.stop()

    async def test_the_server_tends_the_one_in_its_process(self, tmp_path):
        custody = KeyServiceSettings(root_rotation_days=0.001 / 86_400, backup_days=1)
        server = Server(Settings(data=str(tmp_path), port=0, clean_interval_s=0.02, keyservice=custody))
        await server.start()

        await until(lambda: len(versions(tmp_path / "keyservice")) > 1)

        await server.stop()


class Clock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms
