"""The reader's order of checks: what is refused, for which reason, and whether the chain moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sealing_world import RECEIVED_MS, Person, World, contents, entries, extend_chain, flipped, reasons
from twinlock.errors import ClockSkewError, InvalidDataError, LimitExceededError, UpdateNeededError
from twinlock.ids import NO_ENVELOPE, Counter, EnvelopeId, Epoch, SpaceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.envelope import HEADER_BYTES, SIGNATURE_BYTES, Envelope, Kind, envelope_id, parse
from twinlock.protocol.labels import label
from twinlock.protocol.space_log import Role
from twinlock.sealing import ChainHead, DeviceKeys, QuarantineReason, Sealer, revoke_entry
from twinlock.sealing.cipher import envelope_message
from twinlock.sealing.space_keys import EpochKeys


@pytest.fixture
def world() -> World:
    return World()


def resigned(device: DeviceKeys, data: bytes) -> Envelope:
    """Sign altered bytes with the device's true key: what a broken or malicious member device can do."""
    identifier = envelope_id(data[:HEADER_BYTES], data[HEADER_BYTES:-SIGNATURE_BYTES])
    return parse(data[:-SIGNATURE_BYTES] + device.sign.sign(envelope_message(identifier)))


def sealed_raw(world: World, padded: bytes, counter: int = 1, prev: EnvelopeId = NO_ENVELOPE) -> Envelope:
    """Seal and sign bytes that are not padded as they should be."""
    device = world.owner.device
    template = Sealer(device, world.entropy).seal(
        Kind.CHANGE, b"", world.keys, Counter(counter), prev, world.log.head_prefix
    )
    header = template.header_bytes[:108] + (len(padded) + 16).to_bytes(4, "big")
    ciphertext = world.keys.device_cipher(device.device).encrypt(template.header.nonce, padded, header)
    return resigned(device, header + ciphertext + bytes(SIGNATURE_BYTES))


def test_a_chain_opens_in_order(world):
    chain = world.chain(world.owner.device, 5)

    page = world.reader().read(entries(chain))

    assert contents(page) == [b"edit 1", b"edit 2", b"edit 3", b"edit 4", b"edit 5"]
    assert page.heads == {world.owner.device.device: ChainHead(Counter(5), chain[-1].id)}
    assert page.quarantined == []


def test_what_is_opened_says_where_it_comes_from(world):
    (envelope,) = world.chain(world.owner.device, 1)

    source = world.reader().read(entries([envelope], first_seq=9)).opened[0].source

    assert (source.seq, source.received_ms, source.kind, source.epoch) == (9, RECEIVED_MS, Kind.CHANGE, 1)
    assert (source.account, source.device) == (world.owner.keys.account, world.owner.device.device)
    assert (source.counter, source.id) == (1, envelope.id)


def test_chains_of_many_devices_are_told_apart_in_one_page(world):
    second = DeviceKeys.make(world.entropy)
    world.owner.certify(second)
    mixed = [
        envelope
        for pair in zip(world.chain(world.owner.device, 3, "a"), world.chain(second, 3, "b"), strict=True)
        for envelope in pair
    ]

    page = world.reader().read(entries(mixed))

    assert contents(page) == [b"a 1", b"b 1", b"a 2", b"b 2", b"a 3", b"b 3"]


@pytest.mark.parametrize("position", range(HEADER_BYTES + 144 + SIGNATURE_BYTES))
def test_every_altered_byte_is_refused_and_moves_nothing(position):
    world = SMALL_WORLD
    first, second = SMALL_CHAIN
    reader = world.reader()
    reader.read(entries([first]))

    page = reader.read(entries([flipped(second.data, position)], first_seq=2))

    assert contents(page) == []
    assert len(page.quarantined) == 1
    assert not page.quarantined[0].admitted
    assert page.heads == {}
    # The true envelope still finds its place.
    assert contents(reader.read(entries([second], first_seq=3))) == [b"edit 2"]


SMALL_WORLD = World()
SMALL_CHAIN = SMALL_WORLD.chain(SMALL_WORLD.owner.device, 2)


@pytest.mark.parametrize(
    ("position", "reason"),
    [
        (0, "layout"),
        (1, "signature"),
        (2, "layout"),
        (7, "epoch"),
        (8, "space"),
        (24, "device"),
        (47, "gap"),
        (55, "layout"),
        (56, "log_head"),
        (64, "prev"),
        (96, "signature"),
        (111, "layout"),
        (HEADER_BYTES, "signature"),
        (HEADER_BYTES + 143, "signature"),
        (HEADER_BYTES + 144, "signature"),
    ],
)
def test_an_altered_field_is_refused_for_its_own_reason(position, reason):
    reader = SMALL_WORLD.reader()
    reader.read(entries(SMALL_CHAIN[:1]))
    data = SMALL_CHAIN[1].data
    # A change with its kind made 2 is a snapshot: only the signature shows that it was not so sealed.
    altered = data[:1] + b"\x02" + data[2:] if position == 1 else flipped(data, position)

    assert reasons(reader.read(entries([altered], first_seq=2))) == [reason]


def test_an_unknown_version_waits_for_an_update(world):
    (envelope,) = world.chain(world.owner.device, 1)

    page = world.reader().read(entries([b"\x02" + envelope.data[1:], b"\x02future"]))

    assert reasons(page) == ["version", "version"]
    assert QuarantineReason.VERSION.may_differ


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(191), b"\x01" * 191, bytes(4096)])
def test_what_is_no_envelope_is_refused(world, data):
    assert reasons(world.reader().read(entries([data]))) == ["layout"]


@pytest.mark.parametrize("kind", [0, 4, 5, 255])
def test_kinds_that_are_never_stored_are_refused(world, kind):
    (envelope,) = world.chain(world.owner.device, 1)

    assert reasons(world.reader().read(entries([envelope.data[:1] + bytes([kind]) + envelope.data[2:]]))) == ["kind"]


def test_an_envelope_of_another_space_is_refused(world):
    other = World(Person("somebody else"))
    keys = EpochKeys(SpaceId(bytes(16)), Epoch(1), other.keys.member_key, other.keys.service_key)
    sealer = Sealer(world.owner.device, world.entropy)
    envelope = sealer.seal(Kind.CHANGE, b"x", keys, Counter(1), NO_ENVELOPE, world.log.head_prefix)

    assert reasons(world.reader().read(entries([envelope]))) == ["space"]


def test_a_forged_author_is_refused(world):
    forger = Person("forger")
    (envelope,) = world.chain(forger.device, 1)
    as_the_owner = envelope.data[:24] + world.owner.device.device + envelope.data[40:]

    page = world.reader().read(entries([envelope, resigned(forger.device, as_the_owner)]))

    assert reasons(page) == ["device", "signature"]
    assert page.heads == {}


def test_a_member_account_s_uncertified_device_is_a_stranger(world):
    stranger = DeviceKeys.make(world.entropy)

    assert reasons(world.reader().read(entries(world.chain(stranger, 1)))) == ["device"]


def test_a_reader_s_change_does_not_count(world):
    reading = Person("reading")
    world.admit(reading, Role.READER)

    assert reasons(world.reader().read(entries(world.chain(reading.device, 1)))) == ["role"]


def test_what_was_written_before_the_role_was_granted_never_counts(world):
    rising = Person("rising")
    world.admit(rising, Role.READER)
    early = world.chain(rising.device, 1)
    world.admit(rising, Role.EDITOR)

    assert reasons(world.reader().read(entries(early))) == ["role"]
    assert contents(world.reader().read(entries(world.chain(rising.device, 1)))) == [b"edit 1"]


def test_an_envelope_of_a_log_head_not_yet_known_is_taken_after_the_log_came(world):
    old_log, writer = world.log, Person("writer")
    world.admit(writer, Role.EDITOR)
    reader = world.reader(log=old_log)
    held = reader.read(entries(world.chain(world.owner.device, 2)))
    assert reasons(held) == ["log_head", "log_head"]

    reader.update(world.log, [person.state for person in world.people])

    assert contents(reader.retry(held.quarantined)) == [b"edit 1", b"edit 2"]


def test_an_unknown_epoch_waits_for_the_log(world):
    old_log = world.log
    world.rotate()
    reader = world.reader(log=old_log)
    held = reader.read(entries(world.chain(world.owner.device, 1)))
    assert reasons(held) == ["epoch"]

    reader.update(world.log, [])

    assert contents(reader.retry(held.quarantined)) == [b"edit 1"]


def test_a_missing_key_moves_the_chain_and_is_tried_again(world):
    chain = world.chain(world.owner.device, 3)
    keys = world.epochs.pop(Epoch(1))
    reader = world.reader()
    held = reader.read(entries(chain))
    assert reasons(held) == ["key"] * 3
    assert held.heads[world.owner.device.device].counter == 3

    world.epochs[Epoch(1)] = keys

    assert contents(reader.retry(held.quarantined)) == [b"edit 1", b"edit 2", b"edit 3"]


def test_a_signed_envelope_that_does_not_open_is_quarantined_alone(world):
    device, chain = world.owner.device, world.chain(world.owner.device, 1)
    bad = resigned(device, flipped(chain[0].data, HEADER_BYTES))
    following = extend_chain(world, device, [bad], 1, "edit")

    page = world.reader().read(entries(following))

    assert contents(page) == [b"edit 2"]
    assert [(kept.reason, kept.admitted) for kept in page.quarantined] == [("aead", True)]
    assert page.heads[device.device].counter == 2


@pytest.mark.parametrize(
    "padded", [bytes(128), b"\x01" * 128, b"x\x80".ljust(129, b"\0"), b"x\x80", b"x\x81".ljust(128, b"\0")]
)
def test_other_padding_is_quarantined_alone(world, padded):
    bad = sealed_raw(world, padded)
    following = extend_chain(world, world.owner.device, [bad], 1, "edit")

    page = world.reader().read(entries(following))

    assert contents(page) == [b"edit 2"]
    assert reasons(page) == ["padding"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClockSkewError, "timestamp"),
        (UpdateNeededError, "version"),
        (LimitExceededError, "limit"),
        (InvalidDataError, "decoding"),
    ],
)
def test_what_cannot_be_decoded_moves_the_chain_and_is_tried_again(world, error, reason):
    refusing = True

    def decode(payload, source):
        if refusing and payload == b"edit 2":
            raise error
        return payload

    reader = world.reader(decode=decode)
    page = reader.read(entries(world.chain(world.owner.device, 3)))
    refusing = False

    assert contents(page) == [b"edit 1", b"edit 3"]
    assert [(kept.reason, kept.admitted) for kept in page.quarantined] == [(reason, True)]
    assert contents(reader.retry(page.quarantined)) == [b"edit 2"]


def test_a_retry_that_fails_again_keeps_the_entry_with_its_reason(world):
    def decode(payload, source):
        raise ClockSkewError

    reader = world.reader(decode=decode)
    page = reader.read(entries(world.chain(world.owner.device, 2)))

    assert reader.retry(page.quarantined).quarantined == page.quarantined


def test_a_sender_s_drop_is_opened_by_members_and_its_change_is_not(world):
    sender = Person("sensor")
    world.admit(sender, Role.SENDER)
    sealer, log = Sealer(sender.device, world.entropy), world.log
    place = (Counter(1), NO_ENVELOPE, log.head_prefix)
    drop = sealer.seal_drop(b"21.5 degrees", log.space, log.epoch, log.epochs[log.epoch].drop_pk, place)

    assert contents(world.reader().read(entries([drop]))) == [b"21.5 degrees"]
    assert reasons(world.reader().read(entries(world.chain(sender.device, 1)))) == ["role"]


def test_a_signature_under_another_label_is_refused(world):
    (envelope,) = world.chain(world.owner.device, 1)
    other = world.owner.device.sign.sign(label("log-sig", envelope.id))

    assert reasons(world.reader().read(entries([envelope.data[:-SIGNATURE_BYTES] + other]))) == ["signature"]


def test_a_revoked_device_s_old_envelopes_stay_readable(world):
    chain = world.chain(world.owner.device, 2)
    entry = revoke_entry(world.owner.keys, world.owner.state, world.owner.device.device)
    world.owner.state = replay_account([entry], world.owner.state)

    assert contents(world.reader().read(entries(chain))) == [b"edit 1", b"edit 2"]


HEADER = SMALL_CHAIN[0].header_bytes


@given(st.lists(st.binary(max_size=400).flatmap(lambda data: st.sampled_from([data, HEADER + data]))))
def test_no_bytes_make_the_reader_fail_or_open_anything(datas):
    page = SMALL_WORLD.reader().read(entries(datas))

    assert page.opened == []
    assert len(page.quarantined) == len(datas)


def test_only_what_can_never_count_is_not_tried_again():
    final = {reason for reason in QuarantineReason if not reason.is_worth_a_retry}

    assert final == {"layout", "space", "kind", "cutoff", "role", "replay"}
    assert not any(reason.may_differ for reason in final)
