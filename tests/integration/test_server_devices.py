"""What the server tells of devices, how it forgets revoked ones, and how an account changes its keys in one step."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec.structs import replace

from tests.server_kit import CallFailed, Wire, World, hello_to, make_world, now_ms, open_anonymous, open_wire
from twinlock.errors import StoreError
from twinlock.ids import AccountId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import (
    AppendLog,
    KeyringRow,
    LogHead,
    Nothing,
    OpenUnlocker,
    OpenUnlockerResult,
    PutKeyring,
    ReadKeyring,
    ReadLog,
    Unlocker,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.device_calls import (
    DeviceNote,
    Devices,
    DevicesResult,
    Parcel,
    PutDeviceName,
    ReadRevocation,
    ReadRevocationResult,
    Rekem,
    TakeParcel,
    TakeParcelResult,
)
from twinlock.protocol.frames import LOG_GROWN, Attach, Challenge, Notice, Welcome
from twinlock.protocol.membership_calls import Names, NamesResult
from twinlock.sealing.account_requests import rekem_request
from twinlock.sealing.identity import DeviceKeys, device_entry, rekem_entry, revoke_entry
from twinlock.sealing.vault import RecoveryKit, make_unlocker, open_wrapped, unlock
from twinlock.server.presence import NOTE_INTERVAL_MS, Presence
from twinlock.server.sequencer import Author


@pytest.fixture
async def world(server):
    return await make_world(server)


async def notes_of(wire: Wire) -> dict[bytes, DeviceNote]:
    result = await wire.call("account.devices", Devices(), DevicesResult)
    return {note.device: note for note in result.devices}


async def revoke(world: World, wire: Wire, device: DeviceKeys) -> None:
    entry = revoke_entry(world.account, world.account_log, device.device)
    await wire.call("account.append", AppendLog(world.account.account, world.account_log.seq, [entry]))
    world.account_log = replay_account([entry], world.account_log)


# Devices, their names and visits


async def test_an_account_sees_its_devices_who_is_here_and_since_when_the_others_are_not(world):
    wire, before_ms = await world.open(), now_ms()
    second, third = await world.add_device(wire), await world.add_device(wire)
    other = await world.open(second)

    notes = await notes_of(wire)
    assert [notes[keys.device].is_online for keys in (world.device, second, third)] == [True, True, False]
    assert notes[third.device] == DeviceNote(third.device, 0, False, b"")

    await other.close()
    # The server hears of the end a moment later.
    while (note := (await notes_of(wire))[second.device]).is_online:
        continue
    assert before_ms <= note.last_seen_ms <= now_ms()


async def test_a_visit_is_written_down_at_the_latest_when_the_server_stops(server, stores, world):
    wire = await world.open()
    second = await world.add_device(wire)
    await (await world.open(second)).close()

    await server.stop()

    record = await stores.directory.get(f"seen/{world.account.account.hex()}/{second.device.hex()}")
    assert 0 <= now_ms() - int.from_bytes(record.value, "big") < 60_000


def test_a_device_that_comes_and_goes_is_noted_every_ten_minutes():
    presence, author = Presence(), Author(AccountId(b"a" * 16), b"d" * 16, b"")
    presence.arrived(author, 1_000)
    assert presence.take_due() == {author.device: (author.account, 1_000)}

    presence.left(author, 1_000 + NOTE_INTERVAL_MS - 1)
    assert presence.take_due() == {}
    presence.arrived(author, 1_000 + NOTE_INTERVAL_MS)

    assert presence.take_due() == {author.device: (author.account, 1_000 + NOTE_INTERVAL_MS)}


def test_a_device_is_here_until_its_last_session_ends():
    presence, author = Presence(), Author(AccountId(b"a" * 16), b"d" * 16, b"")
    presence.arrived(author, 1)
    presence.arrived(author, 2)

    presence.left(author, 3)
    assert presence.is_online(author.device)
    presence.left(author, 4)

    assert not presence.is_online(author.device)


async def test_a_name_is_kept_as_it_was_sealed_for_the_accounts_own_devices_only(server, world):
    wire, stranger = await world.open(), await (await make_world(server)).open()
    second = await world.add_device(wire)

    await wire.call("device.put_name", PutDeviceName(second.device, b"sealed name"), Nothing)
    with pytest.raises(CallFailed, match="unknown_device"):
        await stranger.call("device.put_name", PutDeviceName(second.device, b"another"))

    other = await world.open(second)
    assert (await notes_of(other))[second.device].name == b"sealed name"
    assert second.device not in await notes_of(stranger)


async def test_a_name_has_its_bound(world):
    wire = await world.open()

    await wire.call("device.put_name", PutDeviceName(world.device.device, bytes(1024)), Nothing)
    with pytest.raises(CallFailed, match="limit_exceeded"):
        await wire.call("device.put_name", PutDeviceName(world.device.device, bytes(1025)))


# Names of accounts


async def test_members_of_a_space_know_one_anothers_names_and_strangers_do_not(server, world):
    wire, stranger = await world.open(), await (await make_world(server)).open()

    named = await wire.call("account.names", Names(world.space), NamesResult)

    assert named.names == {world.account.account: world.name}
    with pytest.raises(CallFailed, match="unknown_space"):
        await stranger.call("account.names", Names(world.space))


async def test_accounts_of_an_older_server_have_names_too(stores, world):
    await stores.directory.delete(f"account_name/{world.account.account.hex()}")
    wire = await world.open()

    named = await wire.call("account.names", Names(world.space), NamesResult)

    assert named.names == {world.account.account: world.name}


# Revocation


async def test_a_revoked_device_learns_it_from_its_accounts_own_signature(server, world):
    wire = await world.open()
    lost = await world.add_device(wire)
    await revoke(world, wire, lost)
    nobody, _ = await open_anonymous(server.port)

    async def told(account: bytes, device: bytes) -> list:
        result = await nobody.call("device.revocation", ReadRevocation(account, device), ReadRevocationResult)
        return result.entries

    assert replay_account(await told(world.account.account, lost.device)) == world.account_log
    # What is no revoked device of an account looks the same, whatever it is.
    for account, device in (
        (world.account.account, world.device.device),
        (world.account.account, os.urandom(16)),
        (os.urandom(16), lost.device),
        (b"", lost.device),
        (world.space, lost.device),
    ):
        assert await told(account, device) == []


async def test_a_revoked_device_is_cut_in_all_its_sessions_and_attaches_in_none(world):
    wire = await world.open()
    lost = await world.add_device(wire)
    sessions = [await world.open(lost) for _ in range(3)]
    await sessions[0].attach(world.space)

    await revoke(world, wire, lost)

    for session in sessions:
        assert await session.refused() == "device_revoked"
    again = await open_wire(world.port)
    await again.send(hello_to(await again.next(Challenge), world.port, world.account, lost))
    await again.send(Attach(world.space, b"", 0))
    assert await again.refused() in ("device_revoked", "unexpected_frame")
    assert not [frame for frame in again.waiting if isinstance(frame, Welcome)]


async def test_a_revoked_device_is_not_certified_again_and_not_paired_again(world):
    wire = await world.open()
    lost = await world.add_device(wire)
    await revoke(world, wire, lost)
    entry = device_entry(world.account, world.account_log, lost.sign_pk, lost.kem_pk)

    with pytest.raises(CallFailed, match="log_invalid"):
        await wire.call("account.append", AppendLog(world.account.account, world.account_log.seq, [entry]))


# New account keys


class Change:
    """A new `kem` key for an account, with all that belongs to it."""

    def __init__(self, world: World, lost: DeviceKeys | None = None) -> None:
        self.kem, self.kit = X25519PrivateKey.generate(), RecoveryKit.make(os.urandom)
        self.account = world.account.with_kem(self.kem)
        entries, state = [], world.account_log
        self.after_seq = state.seq
        if lost is not None:
            entries.append(revoke_entry(world.account, state, lost.device))
            state = replay_account(entries, state)
        entries.append(rekem_entry(world.account, state, self.kem.public_key().public_bytes_raw()))
        self.entries, self.state = entries, replay_account(entries, world.account_log)
        self.parcels = [Parcel(device, b"for " + device) for device in self.state.devices]
        self.unlocker = make_unlocker(self.kit, world.name, world.server_id, os.urandom, self.account)

        self._signed_by, self._server_id, self._before = world.account, world.server_id, world.account_log

    @property
    def request(self) -> Rekem:
        return self.with_all(self.parcels, [self.unlocker])

    def with_all(self, parcels: list[Parcel], unlockers: list[Unlocker], *ends: str) -> Rekem:
        """Make the account's signed request, with other things than `request` has."""
        signed_by, before = self._signed_by, self._before
        return rekem_request(signed_by, self._server_id, before, self.entries, parcels, unlockers, ends)


async def opened_by(world: World, kit: RecoveryKit) -> OpenUnlockerResult:
    wire, _ = await open_anonymous(world.port)
    params = await wire.call("unlocker.params", UnlockerParams(world.name, "recovery_kit"), UnlockerParamsResult)
    keys = unlock(params, kit, world.name, world.server_id)
    result = await wire.call(
        "unlocker.open", OpenUnlocker(world.name, "recovery_kit", keys.auth_key), OpenUnlockerResult
    )
    assert open_wrapped(keys, kit, result.account, result.wrapped).account == world.account.account
    return result


async def parcel_of(wire: Wire) -> bytes:
    return (await wire.call("account.parcel", TakeParcel(), TakeParcelResult)).sealed


async def test_new_keys_reach_the_devices_that_stay_and_the_old_kit_opens_nothing(world):
    wire = await world.open()
    stays, lost = await world.add_device(wire), await world.add_device(wire)
    stolen, other = await world.open(lost), await world.open(stays)
    assert await parcel_of(other) == b""
    change = Change(world, lost)

    head = await wire.call("account.rekem", change.request, LogHead)

    assert head == LogHead(change.state.seq, change.state.head)
    assert await stolen.refused() == "device_revoked"
    assert await parcel_of(other) == b"for " + stays.device
    assert await parcel_of(wire) == b"for " + world.device.device
    with pytest.raises(CallFailed, match="wrong_credentials"):
        await opened_by(world, world.kit)
    assert replay_account((await opened_by(world, change.kit)).entries) == change.state


async def test_the_other_devices_hear_of_it_at_once(world):
    wire = await world.open()
    second = await world.add_device(wire)
    other = await world.open(second)

    await wire.call("account.rekem", Change(world).request)

    notice = await other.next(Notice)
    assert (notice.code, notice.space) == (LOG_GROWN, world.account.account)


async def test_doing_it_again_after_a_lost_reply_changes_nothing(world):
    wire, change = await world.open(), Change(world)
    first = await wire.call("account.rekem", change.request, LogHead)
    thief = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, world.account)

    assert await wire.call("account.rekem", change.request, LogHead) == first
    # Neither a device, which knows the entries, nor the account itself replaces anything by repeating them.
    parcels, signature = [Parcel(world.device.device, b"forged")], change.request.signature
    with pytest.raises(CallFailed, match="signature_refused"):
        await wire.call("account.rekem", Rekem(change.after_seq, change.entries, parcels, [thief], [], signature))
    assert await wire.call("account.rekem", change.with_all(parcels, [thief]), LogHead) == first

    assert await parcel_of(wire) == b"for " + world.device.device
    await opened_by(world, change.kit)


async def test_a_second_change_follows_the_first_and_leaves_nothing_of_it(stores, world):
    wire, first = await world.open(), Change(world)
    await wire.call("account.rekem", first.request)
    world.account_log, world.account = first.state, first.account
    second = Change(world)

    await wire.call("account.rekem", second.request)

    await opened_by(world, second.kit)
    with pytest.raises(CallFailed, match="wrong_credentials"):
        await opened_by(world, first.kit)
    account = world.account.account.hex()
    assert len(await stores.directory.list(f"unlocker/{account}/")) == 1
    assert len(await stores.directory.list(f"parcel/{account}/")) == 1


class Failing:
    """A store that works for so many calls and then fails, as in a crash."""

    def __init__(self, inner, calls: int) -> None:
        self.inner, self.left = inner, calls

    async def __call__(self, *given, **named):
        self.left -= 1
        if self.left < 0:
            raise StoreError("it crashed here")
        return await self.inner(*given, **named)


async def test_a_crash_at_any_step_leaves_the_old_keys_or_the_new_ones_and_can_be_repeated(server, stores):
    is_done, steps, reached = False, 0, []
    while not is_done:
        world = World(server)
        await world.sign_up()
        wire, change = await world.open(), Change(world)
        is_done = await call_until_crash(stores.directory, steps, wire, change)

        # Whatever was reached, exactly one kit opens the account.
        kits = [kit for kit in (world.kit, change.kit) if await opens(world, kit)]
        assert len(kits) == 1
        assert not is_done or kits == [change.kit]
        reached.append(kits == [change.kit])
        await wire.call("account.rekem", change.request)
        assert await opens(world, change.kit)
        assert await parcel_of(wire) == b"for " + world.device.device
        steps += 1
    assert {*reached} == {False, True}
    assert steps > 3


async def call_until_crash(directory, steps: int, wire: Wire, change: Change) -> bool:
    """Change the keys on a store that fails after some writes; tell whether it came to its end."""
    put = directory.put
    directory.put = Failing(put, steps)
    try:
        await wire.call("account.rekem", change.request)
    except CallFailed:
        return False
    finally:
        directory.put = put
    return True


async def opens(world: World, kit: RecoveryKit) -> bool:
    try:
        await opened_by(world, kit)
    except CallFailed as failed:
        return failed.code != "wrong_credentials"
    return True


async def test_what_only_signs_in_stays_and_what_wraps_the_old_key_ends(world):
    wire, change = await world.open(), Change(world)
    password = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, world.account)
    bare = type(password)("password", password.kdf, password.salt, 1, b"k" * 32)
    await wire.call("unlocker.put", world.put(bare))

    await wire.call("account.rekem", change.request)

    nobody, _ = await open_anonymous(world.port)
    signed_in = await nobody.call("unlocker.open", OpenUnlocker(world.name, "password", b"k" * 32), OpenUnlockerResult)
    assert (signed_in.account, signed_in.wrapped) == (world.account.account, b"")

    again = Change(with_log(world, change))
    wrapping = type(bare)("password", bare.kdf, bare.salt, 1, b"k" * 32, b"old keys, wrapped")
    await wire.call("unlocker.put", world.put(wrapping))
    with pytest.raises(CallFailed, match="invalid_call"):
        await wire.call("account.rekem", again.request)
    await wire.call("account.rekem", again.with_all(again.parcels, [again.unlocker], "password"))
    with pytest.raises(CallFailed, match="wrong_credentials"):
        await nobody.call("unlocker.open", OpenUnlocker(world.name, "password", b"k" * 32))


def with_log(world: World, change: Change) -> World:
    world.account_log, world.account = change.state, change.account
    return world


async def test_what_is_not_the_accounts_own_word_stores_nothing(server, stores, world):
    wire, change, thief = await world.open(), Change(world), await make_world(server)
    foreign = Change(thief)
    device = DeviceKeys.make(os.urandom)
    certifying = device_entry(world.account, world.account_log, device.sign_pk, device.kem_pk)
    account = world.account.account.hex()
    before = await stores.directory.list(f"unlocker/{account}/")
    kit, parcels, request = [change.unlocker], change.parcels, change.request
    thieves = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, thief.account)
    for refused, code in (
        (replace(request, entries=foreign.entries), "signature_refused"),
        (replace(request, expect_seq=change.after_seq - 1), "log_conflict"),
        (replace(request, expect_seq=change.after_seq + 1), "log_conflict"),
        (replace(request, expect_seq=0), "log_conflict"),
        (replace(request, entries=[]), "invalid_call"),
        (replace(request, entries=[certifying]), "invalid_call"),
        (change.with_all([*parcels, Parcel(device.device, b"s")], kit), "invalid_call"),
        (change.with_all(parcels * 2, kit), "invalid_call"),
        (change.with_all([Parcel(world.device.device, bytes(513))], kit), "limit_exceeded"),
        (change.with_all(parcels, kit * 2), "invalid_call"),
        # A device that passes the account's request on cannot change what comes with it.
        (replace(request, unlockers=[thieves]), "signature_refused"),
        (replace(request, parcels=[Parcel(world.device.device, b"another")]), "signature_refused"),
        (replace(request, ends=["password"]), "signature_refused"),
        (replace(request, signature=foreign.request.signature), "signature_refused"),
        # Nobody is to be locked out by an oversight.
        (change.with_all([], kit), "invalid_call"),
        (change.with_all(parcels, []), "invalid_call"),
        (change.with_all(parcels, [], "password"), "invalid_call"),
    ):
        with pytest.raises(CallFailed, match=code):
            await wire.call("account.rekem", refused)

    assert await stores.directory.list(f"unlocker/{account}/") == before
    assert await stores.directory.list(f"parcel/{account}/") == {}
    await opened_by(world, world.kit)


async def test_an_account_may_drop_its_kit_if_it_says_so(world):
    wire, change = await world.open(), Change(world)

    await wire.call("account.rekem", change.with_all(change.parcels, [], "recovery_kit"))

    with pytest.raises(CallFailed, match="wrong_credentials"):
        await opened_by(world, world.kit)


async def test_a_rekem_comes_with_its_unlockers_or_not_at_all(world):
    wire, change = await world.open(), Change(world)

    with pytest.raises(CallFailed, match="invalid_call"):
        await wire.call("account.append", AppendLog(world.account.account, change.after_seq, change.entries))


async def test_who_signed_in_by_the_old_kit_may_do_nothing_more_after_the_change(world):
    wire, change = await world.open(), Change(world)
    nobody, _ = await open_anonymous(world.port)
    params = await nobody.call("unlocker.params", UnlockerParams(world.name, "recovery_kit"), UnlockerParamsResult)
    keys = unlock(params, world.kit, world.name, world.server_id)
    await nobody.call("unlocker.open", OpenUnlocker(world.name, "recovery_kit", keys.auth_key))
    await nobody.call("account.log", ReadLog(world.account.account))

    await wire.call("account.rekem", change.request)

    with pytest.raises(CallFailed, match="not_signed_in"):
        await nobody.call("account.log", ReadLog(world.account.account))


async def test_a_device_gives_back_its_accounts_row_and_replaces_none(stores, world):
    wire = await world.open()
    row = await wire.call("space.keyring", ReadKeyring(world.space), KeyringRow)
    junk = KeyringRow(row.account, row.epoch, bytes(len(row.wrapped)))

    await wire.call("space.keyring_put", PutKeyring(world.space, junk))
    assert await wire.call("space.keyring", ReadKeyring(world.space), KeyringRow) == row

    (key,) = await stores.directory.list(f"keyring/{world.space.hex()}/")
    await stores.directory.delete(key)
    await wire.call("space.keyring_put", PutKeyring(world.space, row))
    assert await wire.call("space.keyring", ReadKeyring(world.space), KeyringRow) == row
