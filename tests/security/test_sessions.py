"""Attackers at the door: replayed, relayed and forged proofs, foreign devices, and what each is told."""

import os
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.security.wire import (
    Person,
    anonymous,
    challenged,
    create_room,
    grow_account,
    now_ms,
    revoke,
    sign_up,
    signed_in,
)
from twinlock.client.transport import open_transport, parse_address
from twinlock.errors import (
    ChallengeError,
    ClockSkewError,
    CredentialsError,
    DeviceRevokedError,
    ForeignEnvelopeError,
    LeaseRefusedError,
    LogConflictError,
    ProofError,
    RateLimitedError,
    RoleError,
    SignatureError,
    UnexpectedFrameError,
    UnknownDeviceError,
    UnknownSpaceError,
    WrongServerError,
)
from twinlock.ids import Counter
from twinlock.protocol import hpke, proofs
from twinlock.protocol.calls import (
    AppendLog,
    LogHead,
    OpenUnlocker,
    OpenUnlockerResult,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.client import ClientIdentity, ClientSession
from twinlock.protocol.frames import Ack, Hello, Push, Reject, Welcome
from twinlock.protocol.leased import Leased
from twinlock.sealing import DeviceKeys, RecoveryKit, open_wrapped, unlock
from twinlock.testing.traffic_tap import TrafficTap, free_port


async def test_a_recorded_hello_opens_no_second_session(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        async with challenged(server.url) as wire:
            hello = wire.hello(person, person.device)
            await wire.send(hello)
            await wire.until(Welcome)

        async with challenged(server.url) as replaying:
            await replaying.send(hello)

            assert isinstance(await replaying.refusal(), ProofError)


async def test_bytes_recorded_on_the_wire_open_nothing_when_they_are_sent_again(serving, tmp_path):
    port = free_port()
    async with serving(tmp_path, origins=[f"ws://127.0.0.1:{port}"]) as server, TrafficTap(server.port, port) as tap:
        person = await sign_up(tap.url, "ada")
        async with signed_in(tap.url, person):
            pass
        recorded = tap.recordings[-1].messages_to_server()

        async with challenged(tap.url) as replaying:
            for message in recorded:
                await replaying.send_bytes(message)

            assert isinstance(await replaying.refusal(), ProofError)


async def test_a_hello_that_was_made_for_another_origin_is_refused(serving, tmp_path):
    """A relay shows the true server's challenge at an address of its own and passes the answer on."""
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        for told in ("ws://relay.example:443", server.url):
            async with challenged(server.url) as relay:
                hello = relay.hello(person, person.device, origin="ws://relay.example:443")
                await relay.send(msgspec.structs.replace(hello, origin=told))

                assert isinstance(await relay.refusal(), ProofError), told


async def test_a_client_that_dials_a_relay_is_turned_away_by_the_server(serving, tmp_path):
    async with serving(tmp_path) as server, TrafficTap(server.port, free_port()) as relay:
        person = await sign_up(server.url, "ada")

        with pytest.raises(ProofError):
            async with signed_in(relay.url, person):
                pass


async def test_a_hello_for_one_server_is_worth_nothing_at_another(serving, tmp_path):
    async with serving(tmp_path / "one") as one, serving(tmp_path / "two") as two:
        person = await sign_up(one.url, "ada")
        async with challenged(two.url) as wire, signed_in(one.url, person) as true:
            hello = wire.hello(person, person.device, server_id=proofs.server_id_of(true.challenge.server_pk))
            await wire.send(hello)

            # The other server has never heard of the account, and would not take the proof if it had.
            assert isinstance(await wire.refusal(), ProofError | UnknownDeviceError)


async def test_a_server_without_the_pinned_key_is_left_at_once(serving, tmp_path):
    async with serving(tmp_path / "one") as one, serving(tmp_path / "two") as two:
        async with challenged(one.url) as wire:
            pinned = proofs.server_id_of(wire.challenge.server_pk)
        address = parse_address(two.url)
        session = ClientSession(ClientIdentity(), address.origin, pinned, os.urandom)

        async with open_transport(address) as transport:
            with pytest.raises(WrongServerError):
                session.receive(await transport.receive(), now_ms())

        assert session.take_output() == []


async def test_a_server_that_only_shows_the_pinned_key_cannot_prove_it(serving, tmp_path):
    """An impostor repeats the true server's challenge, and has no signature to go with it."""
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        identity = ClientIdentity(person.keys.account, person.device.device, person.device.sign.sign)
        address = parse_address(server.url)
        session = ClientSession(identity, address.origin, None, os.urandom)
        async with open_transport(address) as transport:
            session.receive(await transport.receive(), now_ms())
        forged = msgspec.msgpack.encode(Welcome(bytes(64), now_ms(), 1, {}))

        with pytest.raises(WrongServerError):
            session.receive(forged, now_ms())


async def test_a_device_that_nobody_certified_is_unknown(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        stranger = DeviceKeys.make(os.urandom)

        with pytest.raises(UnknownDeviceError):
            async with signed_in(server.url, person, stranger):
                pass


async def test_a_device_cannot_sign_in_as_another_device(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        stranger = DeviceKeys.make(os.urandom)
        async with challenged(server.url) as wire:
            # All is true but the signature, which is the stranger's.
            hello = wire.hello(person, stranger, device=person.device.device)
            await wire.send(msgspec.structs.replace(hello, device=person.device.device))

            assert isinstance(await wire.refusal(), ProofError)


async def test_a_device_of_one_account_cannot_sign_in_for_another(serving, tmp_path):
    async with serving(tmp_path) as server:
        ada, eve = await sign_up(server.url, "ada"), await sign_up(server.url, "eve")

        with pytest.raises(UnknownDeviceError):
            async with signed_in(server.url, ada, eve.device):
                pass


@pytest.mark.parametrize("place", range(0, 64, 9))
async def test_a_hello_with_one_altered_bit_is_refused(serving, tmp_path, place):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        async with challenged(server.url) as wire:
            hello = wire.hello(person, person.device)
            signature = bytearray(hello.signature)
            signature[place] ^= 1
            await wire.send(msgspec.structs.replace(hello, signature=bytes(signature)))

            assert isinstance(await wire.refusal(), ProofError)


async def test_a_wrong_kit_or_password_gets_the_same_word_as_an_unknown_name(serving, tmp_path):
    async with serving(tmp_path) as server:
        await sign_up(server.url, "ada")
        for name, kind in (("ada", "recovery_kit"), ("ada", "password"), ("nobody", "recovery_kit")):
            async with anonymous(server.url) as wire:
                with pytest.raises(CredentialsError) as caught:
                    await wire.call("unlocker.open", OpenUnlocker(name, kind, os.urandom(32)), OpenUnlockerResult)

                assert caught.value.detail == ""


async def test_an_unknown_name_gets_steady_parameters_that_look_true(serving, tmp_path):
    async with serving(tmp_path) as server:
        await sign_up(server.url, "ada")
        async with anonymous(server.url) as wire:
            asked = [
                await wire.call("unlocker.params", UnlockerParams(name, "recovery_kit"), UnlockerParamsResult)
                for name in ("ada", "nobody", "nobody", "somebody")
            ]

    true, fake, again, other = asked
    assert (fake.kdf, fake.iterations, len(fake.salt)) == (true.kdf, true.iterations, len(true.salt))
    assert fake == again
    assert fake.salt != other.salt


async def test_guessing_at_an_unlocker_is_slowed_down(serving, tmp_path):
    async with serving(tmp_path, unlocker_tries_per_min=3) as server:
        person = await sign_up(server.url, "ada")
        async with anonymous(server.url) as wire:
            refused = 0
            for _ in range(10):
                try:
                    guess = OpenUnlocker("ada", "recovery_kit", os.urandom(32))
                    await wire.call("unlocker.open", guess, OpenUnlockerResult)
                except CredentialsError:
                    refused += 1
                except RateLimitedError:
                    break

            # A few may pass at once; after them even the right secret has to wait, whoever guesses learns nothing.
            assert refused <= 4
            params = await wire.call("unlocker.params", UnlockerParams("ada", "recovery_kit"), UnlockerParamsResult)
            right = unlock(params, person.kit, "ada", proofs.server_id_of(wire.challenge.server_pk))
            with pytest.raises(RateLimitedError):
                await wire.call(
                    "unlocker.open", OpenUnlocker("ada", "recovery_kit", right.auth_key), OpenUnlockerResult
                )


async def test_another_accounts_kit_opens_nothing_even_with_the_servers_help(serving, tmp_path):
    """A lying server accepts any proof and hands out the wrapped keys: they still do not open."""
    async with serving(tmp_path) as server:
        ada, eve = await sign_up(server.url, "ada"), await sign_up(server.url, "eve")
        async with anonymous(server.url) as wire:
            server_id = proofs.server_id_of(wire.challenge.server_pk)
            params = await wire.call("unlocker.params", UnlockerParams("ada", "recovery_kit"), UnlockerParamsResult)
            right = unlock(params, ada.kit, "ada", server_id)
            handed = await wire.call(
                "unlocker.open", OpenUnlocker("ada", "recovery_kit", right.auth_key), OpenUnlockerResult
            )

        for kit in (eve.kit, RecoveryKit.make(os.urandom)):
            with pytest.raises(CredentialsError):
                open_wrapped(unlock(params, kit, "ada", server_id), kit, handed.account, handed.wrapped)
        assert open_wrapped(right, ada.kit, handed.account, handed.wrapped).account == ada.keys.account


async def test_an_envelope_in_the_name_of_another_device_is_refused_and_stores_nothing(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        second = DeviceKeys.make(os.urandom)
        async with signed_in(server.url, person) as wire:
            person.certify(second)
            await grow_account(wire, person, 2)
            room = await create_room(wire, person)
            forged = room.seal()
            async with signed_in(server.url, person, second) as other:
                answer = await other.push(room.space, forged.data)

                assert isinstance(answer, Reject)
                assert answer.code == ForeignEnvelopeError.code
            assert await wire.entries(room.space) == []
            # The true author's chain was not touched by the attempt.
            assert isinstance(await wire.push(room.space, forged.data), Ack)


async def test_a_stranger_learns_and_changes_nothing_of_a_space(serving, tmp_path):
    async with serving(tmp_path) as server:
        ada, eve = await sign_up(server.url, "ada"), await sign_up(server.url, "eve")
        async with signed_in(server.url, ada) as wire, signed_in(server.url, eve) as stranger:
            room = await create_room(wire, ada)
            entered = room.seal()
            await wire.push(room.space, entered.data)

            with pytest.raises(UnknownSpaceError):
                await stranger.attach(room.space)
            for method, params in (("space.keyring", ReadKeyring(room.space)), ("space.log", ReadLog(room.space))):
                with pytest.raises(UnknownSpaceError):
                    await stranger.call(method, params, msgspec.Raw)
            with pytest.raises(UnknownSpaceError):
                await stranger.lease(eve.lease_request(room.space))
            room.device = eve.device
            refused = await stranger.push(room.space, room.seal().data)
            assert isinstance(refused, Reject)
            assert await wire.entries(room.space) == [entered.data]


async def test_nobody_but_the_account_grows_its_log(serving, tmp_path):
    async with serving(tmp_path) as server:
        ada, eve = await sign_up(server.url, "ada"), await sign_up(server.url, "eve")
        mole = DeviceKeys.make(os.urandom)
        forged = Person("ada")
        forged.entries = list(ada.entries)
        forged.certify(mole)
        async with signed_in(server.url, eve) as stranger:
            with pytest.raises(RoleError):
                await stranger.call("account.append", AppendLog(ada.keys.account, 2, forged.entries[2:]), LogHead)
        async with signed_in(server.url, ada) as wire:
            # Even the account's own session cannot: the entry is not signed by the account's key.
            with pytest.raises(SignatureError):
                await wire.call("account.append", AppendLog(ada.keys.account, 2, forged.entries[2:]), LogHead)
            with pytest.raises((LogConflictError, SignatureError)):
                await wire.call("account.append", AppendLog(ada.keys.account, 1, forged.entries[2:]), LogHead)
            told = await wire.call("account.log", ReadLog(ada.keys.account), ReadLogResult)

        assert told.entries == ada.entries


async def test_a_revoked_device_is_cut_off_refused_and_gets_no_lease(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        lost = DeviceKeys.make(os.urandom)
        async with signed_in(server.url, person) as wire:
            person.certify(lost)
            await grow_account(wire, person, 2)
            room = await create_room(wire, person)
            async with signed_in(server.url, person, lost) as gone:
                await gone.lease(person.lease_request(room.space, lost))
                await revoke(wire, person, lost)

                assert isinstance(await gone.refusal(), DeviceRevokedError)
            with pytest.raises(DeviceRevokedError):
                async with signed_in(server.url, person, lost):
                    pass
            # Its request carried by an accomplice's session is not taken either.
            with pytest.raises((LeaseRefusedError, SignatureError)):
                await wire.lease(person.lease_request(room.space, lost))
        async with serving_again(serving, tmp_path, server) as later:
            with pytest.raises(DeviceRevokedError):
                async with signed_in(later.url, person, lost):
                    pass


@asynccontextmanager
async def serving_again(serving, folder, server):
    """The same folder, served by a new life of the server."""
    await server.stop()
    async with serving(folder) as later:
        yield later


async def test_a_lease_is_for_the_device_that_asked_for_now_and_for_once(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        second = DeviceKeys.make(os.urandom)
        async with signed_in(server.url, person) as wire:
            person.certify(second)
            await grow_account(wire, person, 2)
            room = await create_room(wire, person)
            request = person.lease_request(room.space)
            leases = await wire.lease(request)

            with pytest.raises(ChallengeError):
                await wire.lease(request)
            for minutes in (-5, 5):
                with pytest.raises(ClockSkewError):
                    await wire.lease(person.lease_request(room.space, time_ms=now_ms() + minutes * 60_000))
            with pytest.raises(SignatureError):
                await wire.lease(person.lease_request(room.space, second))
            assert await opens(leases, person.device, room, wire)
            assert not await opens(leases, second, room, wire)


async def opens(leases, device, room, wire) -> bool:
    """Tell whether a device can open a lease, trying it as its own and as the device's that asked."""
    grant = leases.grants[0]
    for name in (device.device, room.device.device):
        info = proofs.lease_info(
            room.space, grant.epoch, name, grant.not_after_ms, wire.challenge.incarnation, leases.nonce
        )
        try:
            return (
                Leased.unpack(hpke.open_sealed(device.kem, grant.sealed, info)).service_key
                == room.keys.service_key.expose()
            )
        except Exception:
            continue
    return False


async def test_a_prolonged_lease_does_not_open(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        async with signed_in(server.url, person) as wire:
            room = await create_room(wire, person)
            leases = await wire.lease(person.lease_request(room.space))
            grant = leases.grants[0]
            longer = msgspec.structs.replace(grant, not_after_ms=grant.not_after_ms + 1)

            assert await opens(leases, person.device, room, wire)
            assert not await opens(msgspec.structs.replace(leases, grants=[longer]), person.device, room, wire)


async def test_nothing_may_be_said_before_the_hello(serving, tmp_path):
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        async with signed_in(server.url, person) as wire:
            room = await create_room(wire, person)
        for say in ("push", "lease", "anonymous push"):
            async with challenged(server.url) as early:
                if say == "anonymous push":
                    await early.send(Hello(os.urandom(32), early.origin, b"", b"", b""))
                    await early.until(Welcome)
                room.counter, sealed = Counter(0), room.seal().data
                if say == "lease":
                    await early.send(person.lease_request(room.space))
                else:
                    await early.send(Push(room.space, [sealed]))

                assert isinstance(await early.refusal(), UnexpectedFrameError), say
