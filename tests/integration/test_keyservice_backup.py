"""Backups of a key service: what they hold, how they come back, and what the drill finds in those that would not."""

import asyncio
import shutil
import sqlite3
import stat
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from twinlock.errors import LeaseRefusedError, SheetError, StoreError
from twinlock.keyservice import KeyServiceSettings, LocalKeyService
from twinlock.keyservice.backup import back_up, restore
from twinlock.keyservice.drill import drill
from twinlock.keyservice.root_backup import FILE_NAME, read_root_backup
from twinlock.keyservice.sheets import join_sheets, make_sheets
from twinlock.keyservice.split import prepare_split
from twinlock.keyservice.wrapper import service_key_context
from twinlock.keyservice.wrapper_file import FileKeyWrapper
from twinlock.testing.contracts.key_requests import lease, opened
from twinlock.testing.contracts.members import NOW_MS

SETTINGS = KeyServiceSettings()


def split(folder, *, again=False):
    """Split the root key into 3 sheets of which 2 are needed; return their words."""
    wrapper = FileKeyWrapper.load(folder / "root.key", folder / FILE_NAME)
    with sqlite3.connect(folder / "keyservice.db") as database:
        (identity,) = database.execute("SELECT value FROM meta WHERE name = 'keyservice_id'").fetchone()
    database.close()
    prepared = prepare_split(wrapper, identity, 3, 2, again=again)
    prepared.adopt()
    return [" ".join(sheet.words) for sheet in prepared.sheets]


def wrapper_of(folder, sheets):
    """Bring the root key back from a folder with its sealed backup."""
    return FileKeyWrapper.of_backup(read_root_backup(folder / FILE_NAME), join_sheets(sheets))


def change(folder, statement, values=()) -> None:
    """Do to the database what an intruder, or a bad disk, might."""
    with closing(sqlite3.connect(folder / "keyservice.db", isolation_level=None)) as database:
        database.execute(statement, values)


class Service:
    """A running key service with two spaces, one of two epochs, and a backup of it."""

    def __init__(self, tmp_path):
        self.folder = tmp_path / "keyservice"
        self.backup = tmp_path / "backup"
        self.to = tmp_path / "restored"
        self.keys = LocalKeyService.open(self.folder)
        self.spaces = []
        self.sheets = []

    async def fill(self):
        self.sheets = split(self.folder)
        self.spaces = [await opened(self.keys, epochs=2), await opened(self.keys)]
        await self.spaces[1].pend(self.keys)
        for space in self.spaces:
            await lease(self.keys, space.owner, space.id, 1)
        back_up(self.folder, self.backup, NOW_MS)

    @property
    def deny_list(self):
        return self.folder / "denied.txt"

    def wrapper(self):
        return wrapper_of(self.backup, self.sheets[:2])

    async def drill(self):
        return await drill(self.backup, self.wrapper(), self.deny_list, SETTINGS)


@pytest.fixture
async def service(tmp_path):
    service = Service(tmp_path)
    await service.fill()
    yield service
    await service.keys.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same, made once and no longer at work."""

    async def make():
        service = Service(tmp_path_factory.mktemp("made"))
        await service.fill()
        await service.keys.close()
        return service

    return asyncio.run(make())


@pytest.fixture
def copy(made, tmp_path):
    """A backup of its own for each test to break."""
    return Path(shutil.copytree(made.backup, tmp_path / "backup"))


class TestBackup:
    async def test_it_holds_neither_root_key_nor_deny_list_nor_any_key_that_opens(self, service):
        files = {file.name: file.read_bytes() for file in service.backup.iterdir()}
        assert set(files) == {"keyservice.db", "backup.json", FILE_NAME}
        root = (service.folder / "root.key").read_bytes()
        keys = [epoch.service_key.expose() for space in service.spaces for epoch in space.epochs.values()]

        for secret in (root, *keys):
            assert not [name for name, data in files.items() if secret in data or secret.hex().encode() in data]
        assert stat.S_IMODE(service.backup.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in service.backup.iterdir()} == {0o600}

    async def test_it_is_made_while_the_service_is_at_work(self, service, tmp_path):
        """What is durable when it begins is in it; a later one holds more."""
        third = await opened(service.keys)
        later = back_up(service.folder, tmp_path / "later", NOW_MS)
        await lease(service.keys, third.owner, third.id, 1)

        assert later.keys_count == 4
        report = await drill(tmp_path / "later", wrapper_of(tmp_path / "later", service.sheets[1:]), None, SETTINGS)
        assert (report.problems, report.keys_count, report.spaces_count) == ([], 4, 3)

    async def test_it_never_takes_the_place_of_something(self, service):
        with pytest.raises(StoreError, match="exists already"):
            back_up(service.folder, service.backup, NOW_MS)
        with pytest.raises(StoreError, match="no key service"):
            back_up(service.folder / "nothing", service.to, NOW_MS)
        assert not service.to.exists()
        assert not list(service.to.parent.glob("*.new"))

    async def test_without_a_split_root_key_it_is_made_too(self, tmp_path):
        await LocalKeyService.open(tmp_path / "plain").close()

        back_up(tmp_path / "plain", tmp_path / "backup", NOW_MS)

        assert not (tmp_path / "backup" / FILE_NAME).exists()
        with pytest.raises(StoreError, match="never split"):
            read_root_backup(tmp_path / "backup" / FILE_NAME)


class TestSplit:
    async def test_every_later_version_of_the_root_key_is_sealed_too(self, service, tmp_path):
        await service.keys.rotate_root_key()
        await service.keys.rotate_root_key()
        back_up(service.folder, tmp_path / "later", NOW_MS)

        wrapper = wrapper_of(tmp_path / "later", service.sheets[1:])

        assert wrapper.versions == [1, 2, 3]
        assert (await drill(tmp_path / "later", wrapper, service.deny_list, SETTINGS)).passed

    async def test_a_rotation_that_fails_half_way_leaves_all_in_order(self, service):
        """The new version is sealed before it is used: here it is sealed, and then cannot be written."""
        obstacle = service.folder / "root.key.new"
        obstacle.mkdir()
        with pytest.raises(StoreError, match="cannot be written"):
            await service.keys.rotate_root_key()
        obstacle.rmdir()
        space = service.spaces[0]
        assert len((await lease(service.keys, space.owner, space.id, 1, 2)).grants) == 2
        half = wrapper_of(service.folder, service.sheets[:2])
        assert (await drill(service.backup, half, service.deny_list, SETTINGS)).passed

        await service.keys.rotate_root_key()

        assert wrapper_of(service.folder, service.sheets[:2]).versions == [1, 2]
        assert (await drill(service.folder, wrapper_of(service.folder, service.sheets[1:]), None, SETTINGS)).passed

    async def test_a_destroyed_version_is_destroyed_in_the_sealed_backup(self, service):
        await service.keys.rotate_root_key()
        await service.keys.destroy_root_key_version(1)

        assert wrapper_of(service.folder, service.sheets[:2]).versions == [2]

    async def test_the_private_half_is_nowhere(self, service):
        private = join_sheets(service.sheets[:2])

        for file in [*service.folder.iterdir(), *service.backup.iterdir()]:
            assert private not in file.read_bytes()

    async def test_a_second_split_is_asked_for_expressly(self, service):
        with pytest.raises(StoreError, match="split before"):
            split(service.folder)
        fresh = split(service.folder, again=True)

        assert wrapper_of(service.folder, fresh[:2]).versions == [1]
        with pytest.raises(SheetError, match="not those of this backup"):
            wrapper_of(service.folder, service.sheets[:2])

    async def test_whoever_writes_beside_the_database_gets_no_later_version(self, service):
        """The next version is sealed to what the root key's own file names, not to what lies in the backup file."""
        forged = (service.folder / FILE_NAME).read_text().replace('"public_key": "', '"public_key": "AAAA')
        (service.folder / FILE_NAME).write_text(forged)

        await service.keys.rotate_root_key()

        assert wrapper_of(service.folder, service.sheets[:2]).versions == [1, 2]

    async def test_a_sealed_version_that_was_altered_or_moved_is_named(self, service):
        await service.keys.rotate_root_key()
        backup = read_root_backup(service.folder / FILE_NAME)
        first, second = backup.sealed[1], backup.sealed[2]
        for sealed in ({1: second, 2: first}, {1: first[:-1] + bytes([first[-1] ^ 1]), 2: second}):
            changed = type(backup)(backup.split, sealed)
            with pytest.raises(StoreError, match=r"version 1 of the root key .* was altered"):
                changed.unseal(join_sheets(service.sheets[:2]))

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"split":1}'])
    async def test_a_damaged_file_is_named(self, service, content):
        (service.folder / FILE_NAME).write_bytes(content)

        with pytest.raises(StoreError, match="damaged"):
            read_root_backup(service.folder / FILE_NAME)


class TestRestore:
    async def test_sheets_and_backup_bring_every_key_back(self, service):
        restored = await restore(service.backup, service.to, service.wrapper(), service.deny_list, SETTINGS)
        again = LocalKeyService.open(service.to)

        for space in service.spaces:
            epochs = sorted(space.epochs)
            assert len((await lease(again, space.owner, space.id, *epochs)).grants) == len(epochs)
        assert (restored.missing, restored.denied_count, restored.ledger.intact) == ([], 0, True)
        assert stat.S_IMODE((service.to / "root.key").stat().st_mode) == 0o600
        await again.rotate_root_key()
        await again.close()
        assert wrapper_of(service.to, service.sheets[1:]).versions == [1, 2]

    async def test_the_root_key_file_does_as_well(self, service):
        wrapper = FileKeyWrapper.load(service.folder / "root.key")
        await restore(service.backup, service.to, wrapper, service.deny_list, SETTINGS)

        again = LocalKeyService.open(service.to)
        space = service.spaces[0]
        assert len((await lease(again, space.owner, space.id, 1, 2)).grants) == 2
        await again.close()

    async def test_a_shredded_space_does_not_come_back(self, service):
        """Its keys are in the backup; the deny list of today deletes them before anybody is answered."""
        shredded, other = service.spaces
        await shredded.shred(service.keys)

        restored = await restore(service.backup, service.to, service.wrapper(), service.deny_list, SETTINGS)

        assert (restored.denied_count, restored.purged_count) == (1, 2)
        with closing(sqlite3.connect(service.to / "keyservice.db")) as database:
            spaces = {space for (space,) in database.execute("SELECT space FROM keys")}
        assert spaces == {other.id}
        again = LocalKeyService.open(service.to)
        with pytest.raises(LeaseRefusedError):
            await lease(again, shredded.owner, shredded.id, 1)
        await again.close()

    async def test_the_deny_list_must_be_there_if_it_is_named(self, service, tmp_path):
        with pytest.raises(StoreError, match="no deny list"):
            await restore(service.backup, service.to, service.wrapper(), tmp_path / "gone.txt", SETTINGS)
        assert not service.to.exists()

    async def test_it_overwrites_nothing(self, service):
        service.to.mkdir()
        (service.to / "precious").touch()

        with pytest.raises(StoreError, match="exists already"):
            await restore(service.backup, service.to, service.wrapper(), service.deny_list, SETTINGS)
        assert [file.name for file in service.to.iterdir()] == ["precious"]

    async def test_another_root_key_leaves_nothing_behind(self, service, tmp_path):
        wrapper = FileKeyWrapper.create(tmp_path / "other.key")

        with pytest.raises(StoreError, match="another root key"):
            await restore(service.backup, service.to, wrapper, service.deny_list, SETTINGS)
        assert not service.to.exists()
        assert not list(tmp_path.glob("*.new"))

    async def test_a_copy_that_another_tool_made_does_as_well(self, service, tmp_path):
        """Such as what is left of the machine's own disk; what it lacks cannot be known then."""
        await service.keys.close()

        restored = await restore(service.folder, service.to, service.wrapper(), service.deny_list, SETTINGS)
        report = await drill(service.folder, service.wrapper(), service.deny_list, SETTINGS)

        assert (restored.manifest, report.manifest) == (None, None)
        assert (report.problems, report.keys_count) == ([], 3)
        again = LocalKeyService.open(service.to)
        assert len((await lease(again, service.spaces[0].owner, service.spaces[0].id, 1, 2)).grants) == 2
        await again.close()

    async def test_a_folder_that_is_no_backup_is_named(self, made, copy, tmp_path):
        (tmp_path / "empty").mkdir()
        for folder in (tmp_path / "nothing", tmp_path / "empty"):
            with pytest.raises(StoreError, match="no key service in"):
                await restore(folder, tmp_path / "to", made.wrapper(), None, SETTINGS)
        (copy / "backup.json").write_text("{}")
        with pytest.raises(StoreError, match="damaged"):
            await restore(copy, tmp_path / "to", made.wrapper(), None, SETTINGS)
        assert not (tmp_path / "to").exists()


class TestDrill:
    async def test_a_whole_backup_passes_and_nothing_stays_behind(self, service, tmp_path, monkeypatch):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        before = {file: file.read_bytes() for file in service.backup.iterdir()}

        report = await service.drill()

        assert report.passed
        assert (report.accounts_count, report.spaces_count) == (2, 2)
        assert (report.keys_count, report.candidates_count) == (3, 1)
        assert (report.denied_count, report.purged_count) == (0, 0)
        assert report.ledger_records_count == 6
        assert list(scratch.iterdir()) == []
        assert {file: file.read_bytes() for file in service.backup.iterdir()} == before

    async def test_the_root_key_is_never_written_to_disk(self, service, monkeypatch):
        seen = []
        original = tempfile.TemporaryDirectory.cleanup

        def noted(folder):
            seen.extend((file.name, file.read_bytes()) for file in Path(folder.name).iterdir())
            original(folder)

        monkeypatch.setattr(tempfile.TemporaryDirectory, "__exit__", lambda folder, *_: noted(folder))
        wrapper = service.wrapper()

        await drill(service.backup, wrapper, service.deny_list, SETTINGS)

        assert "keyservice.db" in {name for name, _ in seen}
        assert "root.key" not in {name for name, _ in seen}

    async def test_denied_spaces_have_no_keys(self, service):
        await service.spaces[0].shred(service.keys)

        report = await service.drill()

        assert report.passed
        assert (report.denied_count, report.purged_count, report.keys_count) == (1, 2, 1)

    def test_a_wrong_sheet_is_named(self, made):
        with pytest.raises(SheetError, match="not those of this backup"):
            wrapper_of(made.backup, [" ".join(sheet.words) for sheet in make_sheets(bytes(32), 3, 2)])

    @pytest.mark.parametrize(
        ("statement", "told"),
        [
            ("UPDATE keys SET wrapped = substr(wrapped, 1, 40) || zeroblob(20) WHERE epoch = 2", "cannot be unwrapped"),
            ("UPDATE keys SET wrapped = zeroblob(60) WHERE epoch = 2", "cannot be unwrapped"),
            ("UPDATE keys SET wrapped = (SELECT wrapped FROM pending) WHERE epoch = 2", "cannot be unwrapped"),
            ("DELETE FROM keys WHERE epoch = 2", "epoch 2 of space {0} is missing"),
            ("DELETE FROM keys WHERE epoch = 2", "made with 3 rows of keys and has 2"),
            ("UPDATE keys SET epoch = 3 WHERE epoch = 2", "its log has no such epoch"),
            ("UPDATE entries SET sig = zeroblob(64) WHERE log = x'{0}' AND seq = 2", "log {0} does not replay"),
            ("UPDATE entries SET body = x'7b7d' WHERE log = x'{0}' AND seq = 3", "log {0} does not replay"),
            ("UPDATE entries SET body = 'text' WHERE log = x'{0}' AND seq = 3", "log {0} does not replay"),
            ("DELETE FROM entries WHERE log = x'{0}' AND seq = 2", "log {0} does not replay"),
            ("DELETE FROM entries WHERE log = x'{0}' AND seq = 3", "the key of epoch 2 of space {0} is there"),
            ("DELETE FROM entries WHERE log = x'{0}'", "the log of space {0} is missing, of which there are 2 keys"),
            ("DELETE FROM entries WHERE seq = 2", "rows of entries"),
            ("UPDATE pending SET b_commit = zeroblob(32)", "a candidate for epoch 2 of space {1} is another one"),
            ("UPDATE ledger SET hash = zeroblob(32) WHERE n = 3", "ledger is broken at record 3"),
            ("DELETE FROM ledger WHERE n = 6", "ledger is broken at record 6"),
        ],
    )
    async def test_what_is_broken_is_found_and_named(self, made, copy, statement, told):
        ids = [space.id.hex() for space in made.spaces]
        change(copy, statement.format(*ids))

        report = await drill(copy, made.wrapper(), made.deny_list, SETTINGS)

        assert not report.passed
        assert [problem for problem in report.problems if told.format(*ids) in problem], report.problems

    async def test_a_key_of_another_space_in_its_place_is_found_by_its_commitment(self, made, copy):
        """Even where whoever put it there holds the root key and wrapped it for that place."""
        space, wrapper = made.spaces[0], made.wrapper()
        with closing(sqlite3.connect(copy / "keyservice.db", isolation_level=None)) as database:
            (identity,) = database.execute("SELECT value FROM meta WHERE name = 'keyservice_id'").fetchone()
            forged = wrapper.wrap(bytes(32), service_key_context(space.id, 1, identity))
            database.execute("UPDATE keys SET wrapped = ? WHERE space = ? AND epoch = 1", (forged, space.id))

        report = await drill(copy, wrapper, made.deny_list, SETTINGS)

        assert report.problems == [
            f"the key of epoch 1 of space {space.id.hex()} is another one than its signed log commits to"
        ]

    async def test_a_deny_list_that_is_too_old_is_found(self, service, tmp_path):
        """A shredded space whose key and log lie in the backup, but which nothing denies."""
        await service.spaces[0].shred(service.keys)
        back_up(service.folder, tmp_path / "later", NOW_MS)
        change(tmp_path / "later", "DELETE FROM denied")

        report = await drill(tmp_path / "later", service.wrapper(), None, SETTINGS)

        assert [problem for problem in report.problems if "shredded but is not denied" in problem]

    async def test_the_ledgers_key_under_another_root_key_stops_it(self, made, copy):
        change(copy, "UPDATE meta SET value = zeroblob(60) WHERE name = 'ledger_key'")

        with pytest.raises(StoreError):
            await drill(copy, made.wrapper(), made.deny_list, SETTINGS)
