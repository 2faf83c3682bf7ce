"""What only a key service with a folder can show: its root key, its ledger, restarts, limits."""

import asyncio
import os
import sqlite3
import stat

import pytest

from twinlock.errors import (
    ChallengeError,
    ClosedError,
    KeyServiceError,
    LeaseRefusedError,
    LogInvalidError,
    OverloadedError,
    RateLimitedError,
    StoreError,
    UpdateNeededError,
)
from twinlock.keyservice import KeyServiceSettings, LocalKeyService
from twinlock.keyservice.key_store import PENDING_KEPT_MS
from twinlock.keyservice.rates import RateLimit
from twinlock.testing.contracts.key_requests import lease, opened, registered
from twinlock.testing.contracts.members import NOW_MS, OwnedSpace


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "keyservice"


@pytest.fixture
async def keys(folder):
    keys = LocalKeyService.open(folder)
    yield keys
    await keys.close()


def change(folder, *statements) -> None:
    """Do to the database what an intruder might."""
    with sqlite3.connect(folder / "keyservice.db") as other:
        for statement in statements:
            other.execute(statement)
    other.close()


async def reopen(keys, folder) -> LocalKeyService:
    await keys.close()
    return LocalKeyService.open(folder)


async def ledger_of_five(keys) -> OwnedSpace:
    """Make a space (one record) and take four leases of it."""
    space = await opened(keys)
    for _ in range(4):
        await lease(keys, space.owner, space.id, 1)
    return space


class TestFolder:
    async def test_only_the_owner_may_read_it(self, keys, folder):
        await opened(keys)
        await keys.deny((await opened(keys)).id, NOW_MS)

        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
        assert {"keyservice.db", "keyservice.db.lock", "root.key", "denied.txt"} <= set(modes)
        assert set(modes.values()) == {0o600}

    async def test_no_service_key_and_no_root_key_lies_open_in_the_database(self, keys, folder):
        space = await opened(keys, epochs=2)
        pending, _ = await space.pend(keys)
        secrets = [epoch.service_key.expose() for epoch in (*space.epochs.values(), pending)]

        stored = b"".join(path.read_bytes() for path in folder.glob("keyservice.db*"))

        assert [secret for secret in secrets if secret in stored or secret.hex().encode() in stored] == []

    async def test_a_second_key_service_on_the_folder_is_refused(self, keys, folder):
        with pytest.raises(StoreError, match="another key service"):
            LocalKeyService.open(folder)

        again = await reopen(keys, folder)
        await again.close()
        with pytest.raises(ClosedError):
            await again.read_log(bytes(16), 0)

    async def test_a_database_of_a_newer_version_is_refused(self, keys, folder):
        await keys.close()
        change(folder, "PRAGMA user_version = 99")

        with pytest.raises(UpdateNeededError):
            LocalKeyService.open(folder)


class TestRootKey:
    async def test_a_missing_root_key_is_never_made_anew_for_an_existing_database(self, keys, folder):
        await opened(keys)
        await keys.close()
        root = (folder / "root.key").read_bytes()
        (folder / "root.key").unlink()

        with pytest.raises(StoreError, match="root key"):
            LocalKeyService.open(folder)

        assert not (folder / "root.key").exists()
        (folder / "root.key").touch(mode=0o600)
        (folder / "root.key").write_bytes(root)
        await LocalKeyService.open(folder).close()

    async def test_the_root_key_of_another_database_is_refused(self, keys, folder, tmp_path):
        other = LocalKeyService.open(tmp_path / "other")
        await other.close()
        await keys.close()
        os.replace(tmp_path / "other" / "root.key", folder / "root.key")

        with pytest.raises(StoreError, match="another root key"):
            LocalKeyService.open(folder)

    async def test_a_root_key_that_others_may_read_is_refused(self, keys, folder):
        await keys.close()
        (folder / "root.key").chmod(0o640)

        with pytest.raises(StoreError, match="chmod 600"):
            LocalKeyService.open(folder)

    async def test_a_damaged_root_key_is_refused(self, keys, folder):
        await keys.close()
        for damaged in (b"", b"{}", b'{"active":2,"keys":{"1":"AAAA"}}'):
            (folder / "root.key").write_bytes(damaged)
            with pytest.raises(StoreError, match="damaged"):
                LocalKeyService.open(folder)

    async def test_the_root_key_may_lie_elsewhere(self, folder, tmp_path):
        place = tmp_path / "elsewhere.key"
        keys = LocalKeyService.open(folder, KeyServiceSettings(root_key_file=str(place)))
        await keys.close()

        assert place.exists()
        assert not (folder / "root.key").exists()

    async def test_keys_survive_a_rotation_and_the_end_of_the_old_version(self, keys, folder):
        space = await opened(keys, epochs=2)
        pending, _ = await space.pend(keys)

        assert await keys.rotate_root_key() == 3
        await keys.destroy_root_key_version(1)
        again = await reopen(keys, folder)

        assert len((await lease(again, space.owner, space.id, 1, 2)).grants) == 2
        await again.append_log(space.log, len(space.entries), [space.epoch_entry(pending)])
        assert (await again.verify_ledger()).intact
        with pytest.raises(StoreError, match="active"):
            await again.destroy_root_key_version(2)
        await again.close()

    async def test_a_wrapped_key_is_bound_to_its_space_and_epoch(self, keys, folder):
        space = await opened(keys, epochs=2)
        change(folder, "UPDATE keys SET wrapped = (SELECT k.wrapped FROM keys k WHERE k.epoch = 3 - keys.epoch)")

        with pytest.raises(StoreError):
            await lease(keys, space.owner, space.id, 1)


class TestLedger:
    async def test_it_records_every_grant_and_refusal(self, keys):
        space, stranger = await opened(keys), await registered(keys)
        leases = await lease(keys, space.owner, space.id, 1)
        with pytest.raises(LeaseRefusedError):
            await lease(keys, stranger, space.id, 1)

        pending, granted, refused = await keys.read_ledger()

        assert (pending.event, pending.epochs, pending.refused) == ("pending", [1], "")
        assert (granted.event, granted.space, granted.epochs) == ("lease", space.id.hex(), [1])
        assert (granted.account, granted.device) == (space.owner.keys.account.hex(), space.owner.device.device.hex())
        assert (granted.time_ms, granted.not_after_ms) == (NOW_MS, leases.grants[0].not_after_ms)
        assert refused.account == stranger.keys.account.hex()
        assert "role" in refused.refused
        report = await keys.verify_ledger()
        assert (report.records_count, report.broken_at) == (3, 0)

    @pytest.mark.parametrize(
        ("statements", "broken_at"),
        [
            (["UPDATE ledger SET record = replace(record, 'lease', 'leafs') WHERE n = 3"], 3),
            (["UPDATE ledger SET hash = zeroblob(32) WHERE n = 2"], 2),
            (["DELETE FROM ledger WHERE n = 1"], 1),
            (["DELETE FROM ledger WHERE n = 3"], 3),
            (["DELETE FROM ledger WHERE n = 5"], 5),
            (["DELETE FROM ledger WHERE n >= 2"], 2),
            (["DELETE FROM ledger"], 1),
            (["DELETE FROM ledger", "DELETE FROM meta WHERE name = 'ledger_head'"], 1),
            (["UPDATE ledger SET n = -1 WHERE n = 2", "UPDATE ledger SET n = 2 WHERE n = 3"], 1),
            (
                [
                    "UPDATE ledger SET n = n + 100 WHERE n IN (3, 4)",
                    "UPDATE ledger SET n = 4 WHERE n = 103",
                    "UPDATE ledger SET n = 3 WHERE n = 104",
                ],
                3,
            ),
            (["DELETE FROM ledger WHERE n = 2", "UPDATE ledger SET n = n - 1 WHERE n > 2"], 2),
            (["INSERT INTO ledger VALUES (6, x'7b7d', zeroblob(32))"], 6),
        ],
    )
    async def test_a_touched_ledger_is_noticed(self, keys, folder, statements, broken_at):
        await ledger_of_five(keys)
        assert (await keys.verify_ledger()).intact
        change(folder, *statements)

        report = await keys.verify_ledger()

        assert (report.intact, report.broken_at) == (False, broken_at)

    async def test_a_ledger_built_anew_by_the_rules_is_noticed(self, keys, folder, tmp_path):
        """Whoever holds only the database can compute every hash, but not the head's proof."""
        await ledger_of_five(keys)
        other = LocalKeyService.open(tmp_path / "other")
        await ledger_of_five(other)
        await other.close()
        change(
            folder,
            f"ATTACH '{tmp_path / 'other' / 'keyservice.db'}' AS other",
            "DELETE FROM ledger",
            "INSERT INTO ledger SELECT * FROM other.ledger",
            "UPDATE meta SET value = (SELECT value FROM other.meta WHERE name = 'ledger_head') "
            "WHERE name = 'ledger_head'",
        )

        assert not (await keys.verify_ledger()).intact

    async def test_it_goes_on_after_a_restart(self, keys, folder):
        space = await ledger_of_five(keys)
        again = await reopen(keys, folder)
        await lease(again, space.owner, space.id, 1)

        report = await again.verify_ledger()
        assert (report.records_count, report.intact) == (6, True)
        await again.close()

    async def test_without_the_ledger_there_is_no_lease(self, keys, folder):
        space = await ledger_of_five(keys)
        change(folder, "CREATE TRIGGER broken BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'full'); END")
        with pytest.raises(KeyServiceError):
            await lease(keys, space.owner, space.id, 1)
        with pytest.raises(KeyServiceError):
            await space.pend(keys)

        change(folder, "DROP TRIGGER broken")
        await lease(keys, space.owner, space.id, 1)
        report = await keys.verify_ledger()
        assert (report.records_count, report.intact) == (6, True)


class TestRestart:
    async def test_pending_keys_logs_and_leases_survive(self, keys, folder):
        space = await opened(keys)
        pending, _ = await space.pend(keys)
        again = await reopen(keys, folder)

        assert await again.read_log(space.log, 0) == space.entries
        await again.append_log(space.log, len(space.entries), [space.epoch_entry(pending)])
        assert len((await lease(again, space.owner, space.id, 1, 2)).grants) == 2
        await again.close()

    async def test_a_request_is_not_taken_again_after_a_restart(self, keys, folder):
        space = await opened(keys)
        request = space.owner.lease_request(space.id, 1)
        await keys.lease(space.owner.asking(), request)
        again = await reopen(keys, folder)

        with pytest.raises(ChallengeError):
            await again.lease(space.owner.asking(NOW_MS + 1), request)
        await again.close()

    async def test_a_stored_log_that_was_altered_is_noticed(self, keys, folder):
        space = await opened(keys)
        await keys.close()
        change(folder, "UPDATE entries SET sig = zeroblob(64) WHERE seq = 2")
        again = LocalKeyService.open(folder)

        with pytest.raises(StoreError, match="does not replay"):
            await lease(again, space.owner, space.id, 1)
        await again.close()


class TestDeny:
    async def test_a_denied_space_gets_no_key_ever_again(self, keys, folder):
        space, other = await opened(keys), await opened(keys)
        pending, _ = await space.pend(keys)
        await keys.deny(space.id, NOW_MS)
        await keys.deny(space.id, NOW_MS)

        async def check(service) -> None:
            with pytest.raises(LeaseRefusedError):
                await lease(service, space.owner, space.id, 1)
            with pytest.raises(LeaseRefusedError):
                await space.pend(service)
            with pytest.raises(LeaseRefusedError):
                await service.append_log(space.log, len(space.entries), [space.epoch_entry(pending)])
            assert len((await lease(service, other.owner, other.id, 1)).grants) == 1

        await check(keys)
        again = await reopen(keys, folder)
        await check(again)
        await again.close()

    async def test_a_backup_of_the_database_does_not_bring_it_back(self, keys, folder):
        space = await opened(keys)
        await keys.close()
        backup = (folder / "keyservice.db").read_bytes()
        again = LocalKeyService.open(folder)
        await again.deny(space.id, NOW_MS)
        await again.close()
        (folder / "keyservice.db").write_bytes(backup)

        restored = LocalKeyService.open(folder)
        with pytest.raises(LeaseRefusedError):
            await lease(restored, space.owner, space.id, 1)
        await restored.close()

    async def test_a_line_that_was_cut_short_denies_nobody(self, keys, folder):
        space = await opened(keys)
        await keys.close()
        (folder / "denied.txt").write_text(bytes(16).hex() + "\n" + space.id.hex()[:10])
        again = LocalKeyService.open(folder)
        assert len((await lease(again, space.owner, space.id, 1)).grants) == 1
        await again.deny(space.id, NOW_MS)
        await again.close()

        last = LocalKeyService.open(folder)
        with pytest.raises(LeaseRefusedError):
            await lease(last, space.owner, space.id, 1)
        await last.close()


class TestLimits:
    async def test_requests_of_a_device(self, folder):
        keys = LocalKeyService.open(folder, KeyServiceSettings(requests_burst=3, requests_per_second=2.0))
        space, other = await opened(keys), await opened(keys)
        for _ in range(2):
            await lease(keys, space.owner, space.id, 1)

        with pytest.raises(RateLimitedError) as refused:
            await lease(keys, space.owner, space.id, 1)
        await lease(keys, other.owner, other.id, 1)
        wait_ms = refused.value.retry_after_ms
        with pytest.raises(RateLimitedError):
            await lease(keys, space.owner, space.id, 1, now_ms=NOW_MS + wait_ms - 2)
        await lease(keys, space.owner, space.id, 1, now_ms=NOW_MS + wait_ms)
        await keys.close()

    async def test_candidates_of_a_signer(self, keys):
        space = OwnedSpace(await registered(keys))
        pending = [(await space.pend(keys))[0] for _ in range(17)]

        entries = [*space.entries, space.epoch_entry(pending[0])]
        with pytest.raises(LogInvalidError, match="not made for its signer"):
            await keys.append_log(space.log, 0, entries)
        await keys.append_log(space.log, 0, [*space.entries, space.epoch_entry(pending[1])])

    @pytest.mark.parametrize(("later_ms", "is_kept"), [(PENDING_KEPT_MS, True), (PENDING_KEPT_MS + 1, False)])
    async def test_how_long_candidates_are_kept(self, keys, later_ms, is_kept):
        space, other = OwnedSpace(await registered(keys)), OwnedSpace(await registered(keys))
        pending, _ = await space.pend(keys)
        request = other.owner.pending_request(other.id, 1, other.entries[0], time_ms=NOW_MS + later_ms)
        await keys.create_pending(other.owner.asking(NOW_MS + later_ms), request)
        entries = [*space.entries, space.epoch_entry(pending)]

        if is_kept:
            assert (await keys.append_log(space.log, 0, entries)).seq == 2
        else:
            with pytest.raises(LogInvalidError):
                await keys.append_log(space.log, 0, entries)

    async def test_requests_that_may_wait(self, keys, monkeypatch):
        monkeypatch.setattr("twinlock.keyservice.worker.WAITING_MAX", 3)

        outcomes = await asyncio.gather(*(keys.read_log(bytes(16), 0) for _ in range(4)), return_exceptions=True)

        assert outcomes[:3] == [[], [], []]
        assert isinstance(outcomes[3], OverloadedError)
        assert outcomes[3].retry_after_ms > 0
        assert await keys.read_log(bytes(16), 0) == []

    async def test_buckets_that_are_kept(self, monkeypatch):
        monkeypatch.setattr("twinlock.keyservice.rates.DEVICES_KEPT_MAX", 2)
        rates = RateLimit(burst=1, per_second=1.0)
        for device in (b"1", b"2"):
            rates.take(device, NOW_MS)
        for device in (b"1", b"2"):
            with pytest.raises(RateLimitedError):
                rates.take(device, NOW_MS)

        rates.take(b"3", NOW_MS)

        rates.take(b"1", NOW_MS)
        with pytest.raises(RateLimitedError):
            rates.take(b"3", NOW_MS)

    async def test_logs_are_replayed_again_after_they_left_memory(self, keys, monkeypatch):
        monkeypatch.setattr("twinlock.keyservice.logs.STATES_CACHED_MAX", 1)
        spaces = [await opened(keys) for _ in range(3)]

        for space in spaces:
            assert len((await lease(keys, space.owner, space.id, 1)).grants) == 1
