"""Who holds one of the two keys opens nothing: all that one side stores is tried as the key that it lacks."""

from pathlib import Path

import msgspec
import pytest

from tests.security.raid import KEY_BYTES, stored, windows
from tests.security.wire import create_room, sign_up, signed_in
from twinlock.errors import OpenError, TwinlockError
from twinlock.ids import Epoch
from twinlock.keyservice.wrapper import service_key_context
from twinlock.keyservice.wrapper_file import FileKeyWrapper
from twinlock.protocol.envelope import parse
from twinlock.protocol.proofs import b_commit
from twinlock.sealing import EpochKeys, MemberKey, ServiceKey, open_payload
from twinlock.testing.workload import open_database

PAYLOAD = b"what only members may read"


@pytest.fixture
async def raided(serving, tmp_path):
    """A server with one sealed envelope, whose whole disk an attacker has: envelopes, keyring, wrapped B, root key."""
    async with serving(tmp_path) as server:
        person = await sign_up(server.url, "ada")
        async with signed_in(server.url, person) as wire:
            room = await create_room(wire, person)
            await wire.push(room.space, room.seal(PAYLOAD).data)
            await wire.lease(person.lease_request(room.space))
    return tmp_path / "data", room


def released_service_key(data: Path, space: bytes) -> bytes:
    """Do what the key service does: unwrap B by the root key that lies beside it."""
    wrapper = FileKeyWrapper.load(data / "keyservice" / "root.key")
    with open_database(data / "keyservice" / "keyservice.db") as connection:
        (wrapped,) = connection.execute("SELECT wrapped FROM keys WHERE space = ?", (space,)).fetchone()
        (keyservice_id,) = connection.execute("SELECT value FROM meta WHERE name = 'keyservice_id'").fetchone()
    return wrapper.unwrap(wrapped, service_key_context(space, Epoch(1), keyservice_id))


def opening_member_keys(candidates: set[bytes], room, service_key: bytes) -> list[bytes]:
    """Return which of some candidates are the member key that goes with a service key."""
    record = room.log.epochs[Epoch(1)]
    b = ServiceKey(service_key)
    return [
        candidate
        for candidate in candidates
        if EpochKeys(room.space, Epoch(1), MemberKey(candidate), b).dk_commit == record.dk_commit
    ]


async def test_server_and_key_service_together_cannot_open_an_envelope(raided):
    data, room = raided
    service_key = released_service_key(data, room.space)
    with open_database(data / "twinlock.db") as connection:
        (envelope,) = connection.execute("SELECT envelope FROM log").fetchone()
    # The attacker does have B, the true one, and the envelope as it was sealed.
    assert b_commit(room.space, Epoch(1), service_key) == room.log.epochs[Epoch(1)].b_commit
    assert open_payload(parse(envelope), room.keys) == PAYLOAD

    candidates = windows(stored(data))

    assert service_key not in candidates, "B lies unwrapped on the disk"
    assert len(candidates) > 1_000
    assert opening_member_keys(candidates | {service_key, bytes(KEY_BYTES)}, room, service_key) == []
    for guess in (service_key, bytes(KEY_BYTES), room.log.head):
        keys = EpochKeys(room.space, Epoch(1), MemberKey(guess), ServiceKey(service_key))
        with pytest.raises(OpenError):
            open_payload(parse(envelope), keys)


async def test_the_search_would_find_a_member_key_that_leaked(raided):
    """The control of the test above: a key that lies anywhere in a record is found."""
    data, room = raided
    leaked = msgspec.msgpack.encode({"debug": [1, {"a": b"prefix" + room.keys.member_key.expose() + b"suffix"}]})
    with open_database(data / "twinlock.db") as connection:
        connection.execute("INSERT INTO records VALUES ('leak', ?, 10000)", (leaked,))

    found = opening_member_keys(windows(stored(data)), room, released_service_key(data, room.space))

    assert found == [room.keys.member_key.expose()]


async def test_the_servers_database_alone_does_not_even_give_the_service_key(raided):
    data, room = raided
    (data / "keyservice" / "root.key").unlink()
    commit = room.log.epochs[Epoch(1)].b_commit

    candidates = windows(stored(data))

    assert [key for key in candidates if b_commit(room.space, Epoch(1), key) == commit] == []


async def test_a_member_key_alone_opens_nothing(raided):
    """What a removed member or a stolen device without a lease is left with."""
    data, room = raided
    with open_database(data / "twinlock.db") as connection:
        (envelope,) = connection.execute("SELECT envelope FROM log").fetchone()
    a = room.keys.member_key
    (data / "keyservice" / "root.key").unlink()

    for candidate in windows(stored(data)) | {a.expose(), bytes(KEY_BYTES)}:
        keys = EpochKeys(room.space, Epoch(1), a, ServiceKey(candidate))
        assert keys.dk_commit != room.log.epochs[Epoch(1)].dk_commit
    with pytest.raises(TwinlockError):
        open_payload(parse(envelope), EpochKeys(room.space, Epoch(1), a, ServiceKey(a.expose())))
