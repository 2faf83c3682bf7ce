"""A sensor that somebody took: it sends as itself until it is cut off, and reads nothing, not even its own words."""

import os

import pytest

from tests.client_kit import until
from tests.security.attackers import (
    SECRET,
    Hand,
    chain_head,
    change,
    copied,
    delivered,
    plant,
    reasons,
    service_keys,
    texts,
)
from tests.security.raid import windows
from tests.security.test_stolen_device import take
from twinlock.errors import LeaseRefusedError, OpenError, RemovedError, TwinlockError
from twinlock.ids import Counter, EnvelopeId, Epoch
from twinlock.protocol import hpke
from twinlock.protocol.calls import KeyringRow, ReadKeyring
from twinlock.protocol.envelope import Envelope, Kind
from twinlock.protocol.frames import Ack, Entries, Push, Reject
from twinlock.protocol.labels import label
from twinlock.sealing import EpochKeys, MemberKey, Sealer, ServiceKey, open_payload

PLACE = "greenhouse"
READING = "21 degrees"


class Sensor(Hand):
    """A sender's device in a thief's hands: its whole folder with the StoreKey, and what that opens."""

    def __init__(self, db, space: bytes) -> None:
        super().__init__(db, space)
        self.own = db.space(space).own_prefix

    def drop(self, id: str, text: str, after: tuple[int, bytes]) -> Envelope:
        """Seal to the public drop key, as a sender does."""
        place = (Counter(after[0] + 1), EnvelopeId(after[1]), self.log.head_prefix)
        drop_pk = self.log.epochs[Epoch(1)].drop_pk
        return Sealer(self.device, os.urandom).seal_drop(change(id, text), self.space, Epoch(1), drop_pk, place)

    def head(self, world) -> tuple[int, bytes]:
        """Where the sensor's chain stands."""
        return chain_head(world, self.space, self.device.device)


@pytest.fixture
async def stolen(household):
    """Ben's device sends to a space of ann's, who writes there too; then it is taken."""
    ann, ben = await household.unlocked("a"), await household.unlocked("ben")
    place = await ann.create_space(PLACE)
    sent = await ben.join(await place.invite("sender"))
    await (await place.collection("notes").doc("shed").set({"text": SECRET})).durable()
    await (await sent.collection("notes").doc(sent.own_prefix).set({"text": READING})).durable()
    sensor = Sensor(ben, bytes.fromhex(sent.id))
    await ben.close()
    copied(household.folder / "ben", household.folder / "stolen")
    await until_texts(ann, {"shed": SECRET, sensor.own: READING})
    return sensor, ann


async def until_texts(db, expected) -> None:
    """Wait until a device shows just these documents."""
    found = [{}]
    notes = db.space(PLACE).collection("notes")
    ended = notes.on_snapshot(lambda snap: found.append({doc.id: doc.data["text"] for doc in snap.docs}))
    await until(lambda: found[-1] == expected)
    ended()


async def test_a_stolen_sender_sends_as_itself_until_it_is_cut_off(household, stolen):
    sensor, ann = stolen
    true = {"shed": SECRET, sensor.own: READING}
    async with sensor.wire(household.url) as wire:
        # What it gets: it sends, in its own name, what it likes.
        lie = sensor.drop(sensor.own, "99 degrees", sensor.head(household))
        assert isinstance(await wire.push(sensor.space, lie.data), Ack)
        await until_texts(ann, {**true, sensor.own: "99 degrees"})
        # Other people's documents are not its own: that counts for no reader.
        spoilt = sensor.drop("shed", "burnt", (lie.header.counter, lie.id))
        assert isinstance(await wire.push(sensor.space, spoilt.data), Ack)
        await until(lambda: reasons(ann) == ["decoding"])
    await ann.space(PLACE).remove("ben")

    # From then on nothing counts, neither at the server nor, should it be dishonest, at a reader.
    late = sensor.drop(sensor.own, "100 degrees", (spoilt.header.counter, spoilt.id))
    async with sensor.wire(household.url) as wire:
        refusal = await wire.push(sensor.space, late.data)
        assert isinstance(refusal, Reject)
        assert refusal.code == "removed"
    await household.stop()
    plant(household, sensor.space, late.data)
    await household.restart()
    b = await household.device("b")
    await until(lambda: any(info.title == PLACE for info in b.spaces()))
    assert await texts(b, PLACE) == {**true, sensor.own: "99 degrees"}
    assert reasons(b) == ["cutoff", "decoding"]


async def test_a_stolen_sender_is_given_nothing_to_read_by_an_honest_server(household, stolen):
    sensor, _ = stolen
    async with sensor.wire(household.url) as wire:
        with pytest.raises(TwinlockError) as refused:
            await wire.call("space.keyring", ReadKeyring(sensor.space), KeyringRow)
        assert refused.value.code in ("not_found", "role_forbids")
        with pytest.raises(LeaseRefusedError):
            await wire.lease(sensor.lease_request(1))
        for kind in (Kind.CHANGE, Kind.SNAPSHOT):
            with pytest.raises(KeyError):
                sensor.seal(b"", kind=kind)
        await wire.attach(sensor.space)
        await wire.send(Push(sensor.space, [sensor.drop(sensor.own, "22 degrees", sensor.head(household)).data]))
        frames = [await wire.receive()]
        while not isinstance(frames[-1], Ack):
            frames.append(await wire.receive())
        assert not any(isinstance(frame, Entries) for frame in frames), "what others wrote was delivered"


async def test_a_stolen_sender_with_all_that_the_server_has_reads_nothing_not_even_what_it_sent(household, stolen):
    """Its folder, opened by its StoreKey; every byte of server and key service; and B."""
    sensor, ann = stolen
    true_key = Hand(ann, PLACE).keys[Epoch(1)]
    await ann.close()
    await household.stop()
    loot = take(household.folder / "stolen")
    b = service_keys(household, sensor.space)[Epoch(1)]
    commit = sensor.log.epochs[Epoch(1)].dk_commit
    candidates = windows(loot.values)
    assert b == true_key.service_key.expose()
    assert sensor.device.expose()[:32] in candidates, "the control: the device's own keys are in the loot"
    assert true_key.member_key.expose() not in candidates
    for key in candidates:
        assert EpochKeys(sensor.space, Epoch(1), MemberKey(key), ServiceKey(b)).dk_commit != commit

    for envelope in delivered(household, sensor.space):
        if envelope.header.kind is Kind.DROP:
            for kem in (sensor.device.kem, sensor.kem):
                with pytest.raises(OpenError):
                    hpke.open_sealed(kem, envelope.ciphertext, label("drop", envelope.header_bytes))
        # The control: whoever holds both keys opens it.
        assert open_payload(envelope, true_key)
    plain = b"".join(loot.values)
    assert READING.encode() not in plain
    assert SECRET.encode() not in plain


async def test_a_removed_sensors_folder_is_of_no_use_to_our_client_either(household, stolen):
    sensor, ann = stolen
    await ann.space(PLACE).remove("ben")

    thief = await household.device("stolen")

    await until(lambda: [end.space for end in thief.ended_spaces()] == [sensor.space.hex()])
    with pytest.raises(RemovedError):
        thief.space(sensor.space)
