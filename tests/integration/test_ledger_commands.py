"""`twinlock ledger` on a folder, while the key service runs: what it shows, and everything that it notices."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from twinlock.cli.commands import commands
from twinlock.errors import LeaseRefusedError
from twinlock.keyservice import LocalKeyService
from twinlock.testing.contracts.key_requests import lease, opened, registered
from twinlock.testing.contracts.members import NOW_MS

HOUR_MS = 3_600_000


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "keyservice"


@pytest.fixture
async def keys(folder):
    keys = LocalKeyService.open(folder, now_ms=lambda: NOW_MS)
    yield keys
    await keys.close()


def run(folder, *words: str):
    return CliRunner().invoke(commands, ["ledger", *words, "--data", str(folder)])


def change(folder, statement: str) -> None:
    with closing(sqlite3.connect(folder / "keyservice.db")) as database, database:
        database.execute(statement)


async def copy_of(keys, folder):
    """Return the database's bytes of this moment, as a backup holds them."""
    with closing(sqlite3.connect(folder / "keyservice.db")) as database:
        return database.serialize()


class TestShow:
    async def test_it_shows_releases_refusals_denials_and_rotations(self, keys, folder):
        space, stranger = await opened(keys), await registered(keys)
        await lease(keys, space.owner, space.id, 1)
        with pytest.raises(LeaseRefusedError):
            await lease(keys, stranger, space.id, 1)
        await keys.rotate_root_key()
        await space.shred(keys)

        shown = run(folder, "show")

        assert shown.exit_code == 0
        lines = shown.stdout.splitlines()[1:]
        assert [line.split()[3] for line in lines] == [
            "pending",
            "lease",
            "lease",
            "root_rotated",
            "root_retired",
            "denied",
        ]
        assert space.id.hex()[:12] in lines[1]
        assert "until 2023-11-15" in lines[1]
        assert "refused: the account has no role" in lines[2]
        assert "version 2 of the root key" in lines[3]
        assert "1 keys deleted" in lines[5]

    async def test_records_are_chosen_by_space_account_device_and_time(self, keys, folder):
        space, other = await opened(keys), await opened(keys)
        await lease(keys, space.owner, space.id, 1)
        await lease(keys, other.owner, other.id, 1, now_ms=NOW_MS + HOUR_MS)

        def numbers(*words: str) -> list[int]:
            return [json.loads(line)["number"] for line in run(folder, "show", "--json", *words).stdout.splitlines()]

        assert numbers() == [1, 2, 3, 4]
        assert numbers("--space", space.id.hex()) == [1, 3]
        assert numbers("--account", other.owner.keys.account.hex()[:10].upper()) == [2, 4]
        assert numbers("--device", space.owner.device.device.hex()) == [1, 3]
        assert numbers("--since", "2023-11-14T23:00") == [4]
        assert numbers("--since", "2023-11-14T23:00", "--space", space.id.hex()) == []
        assert numbers("--since", "1h") == []

    async def test_json_tells_whole_ids(self, keys, folder):
        space = await opened(keys)
        leases = await lease(keys, space.owner, space.id, 1)

        record = json.loads(run(folder, "show", "--json").stdout.splitlines()[1])

        assert record == {
            "number": 2,
            "time_ms": NOW_MS,
            "event": "lease",
            "space": space.id.hex(),
            "account": space.owner.keys.account.hex(),
            "device": space.owner.device.device.hex(),
            "epochs": [1],
            "not_after_ms": leases.grants[0].not_after_ms,
        }

    @pytest.mark.parametrize("words", [("--since", "soon"), ("--space", "kitchen"), ("--account", "0x12")])
    async def test_words_that_mean_nothing_are_wrong_usage(self, keys, folder, words):
        assert run(folder, "show", *words).exit_code == 2

    def test_a_folder_without_a_key_service_is_told(self, tmp_path):
        shown = run(tmp_path, "show")

        assert shown.exit_code == 1
        assert "no key service" in shown.stderr


class TestVerify:
    async def test_a_whole_ledger_tells_its_head_and_finds_one_that_was_noted(self, keys, folder):
        space = await opened(keys)
        noted = run(folder, "verify").stdout.strip()
        await lease(keys, space.owner, space.id, 1)

        checked = run(folder, "verify", "--expect-head", noted)

        assert checked.exit_code == 0
        assert len(bytes.fromhex(checked.stdout.strip())) == 32
        assert checked.stdout.strip() != noted
        assert "2 records" in checked.stderr
        assert "record 1" in checked.stderr

    @pytest.mark.parametrize(
        ("statement", "told"),
        [
            ("UPDATE ledger SET record = replace(record, 'lease', 'leafs') WHERE n = 3", "record 3"),
            ("DELETE FROM ledger WHERE n = 2", "record 2"),
            ("DELETE FROM ledger WHERE n = 4", "not all"),
            ("DELETE FROM ledger", "not all"),
            ("UPDATE ledger SET hash = zeroblob(32) WHERE n = 1", "record 1"),
        ],
    )
    async def test_what_was_altered_or_cut_is_noticed(self, keys, folder, statement, told):
        space = await opened(keys)
        for _ in range(3):
            await lease(keys, space.owner, space.id, 1)
        change(folder, statement)

        checked = run(folder, "verify")

        assert checked.exit_code == 1
        assert "ledger_broken" in checked.stderr
        assert told in checked.stderr
        assert checked.stdout == ""

    async def test_a_ledger_that_was_put_back_as_a_whole_is_noticed_by_the_head_that_was_noted(self, keys, folder):
        space = await opened(keys)
        earlier = await copy_of(keys, folder)
        await lease(keys, space.owner, space.id, 1)
        noted = run(folder, "verify").stdout.strip()
        await keys.close()
        (folder / "keyservice.db").write_bytes(earlier)

        assert run(folder, "verify").exit_code == 0
        checked = run(folder, "verify", "--expect-head", noted)

        assert checked.exit_code == 1
        assert "put back" in checked.stderr

    async def test_the_ledger_of_another_folder_under_this_root_key_is_noticed(self, keys, folder, tmp_path):
        other = LocalKeyService.open(tmp_path / "other")
        await opened(other)
        await other.close()
        await opened(keys)
        await keys.close()
        shutil.copy(tmp_path / "other" / "keyservice.db", folder / "keyservice.db")

        checked = run(folder, "verify")

        assert checked.exit_code == 1
        assert "another root key" in checked.stderr

    async def test_a_missing_root_key_is_told_and_not_made(self, keys, folder):
        await opened(keys)
        (folder / "root.key").rename(folder / "away.key")

        assert run(folder, "verify").exit_code == 1
        assert not (folder / "root.key").exists()

    async def test_a_head_of_no_proper_form_is_wrong_usage(self, keys, folder):
        assert run(folder, "verify", "--expect-head", "abc").exit_code == 2

    async def test_nothing_in_the_folder_is_changed(self, keys, folder):
        await opened(keys)
        await keys.close()
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        run(folder, "verify")
        run(folder, "show")

        after = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm"))}
        assert after == {name: data for name, data in before.items() if not name.endswith(("-wal", "-shm"))}
