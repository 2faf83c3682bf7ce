"""The reader's order of checks: what is refused, for which reason, and whether the chain moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sealing_world import RECEIVED_MS, Person, World, contents, entries, extend_chain, flipped, reasons
from twinlock.errors import ClockSkewError, InvalidDataError, LimitExceededError, UpdateNeededError
from twinlock.ids import NO_ENVELOPE, Counter, EnvelopeId, Epoch, SpaceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.envelope import HEADER_BYTES, SIGNATURE_BYTES, Envelope, Kind, envelope_id, parse
from twinlock.protocol.frames import Entry
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


def test_a_later_page_goes_on_from_the_stored_heads(world):
    chain = world.chain(world.owner.device, 4)
    first = world.reader().read(entries(chain[:2]))

    page = world.reader(heads=first.heads).read(entries(chain[2:], first_seq=3))

    assert contents(page) == [b"edit 3", b"edit 4"]


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


def test_a_replayed_envelope_is_refused(world):
    chain = world.chain(world.owner.device, 3)
    reader = world.reader()
    reader.read(entries(chain))

    page = reader.read(entries(chain, first_seq=4))

    assert reasons(page) == ["replay"] * 3
    assert page.heads == {}


def test_another_envelope_with_a_used_counter_is_refused(world):
    reader = world.reader()
    reader.read(entries(world.chain(world.owner.device, 2)))
    (again, *_) = world.chain(world.owner.device, 1, "another")

    assert reasons(reader.read(entries([again], first_seq=3))) == ["replay"]


def test_a_gap_stops_the_chain_until_what_is_missing_comes(world):
    chain = world.chain(world.owner.device, 5)
    reader = world.reader()
    held = reader.read(entries([chain[0], chain[3], chain[4]]))
    assert contents(held) == [b"edit 1"]
    assert reasons(held) == ["gap", "gap"]

    page = reader.read(entries(chain[1:3], first_seq=10))

    assert contents(page) == [b"edit 4", b"edit 5", b"edit 2", b"edit 3"]
    assert page.quarantined == []
    assert page.heads[world.owner.device.device].counter == 5


def test_a_gap_is_healed_by_a_retry_after_a_restart(world):
    chain = world.chain(world.owner.device, 4)
    held = world.reader().read(entries([chain[0], chain[2], chain[3]]))
    restarted = world.reader(heads=held.heads)
    filled = restarted.read(entries([chain[1]], first_seq=10))

    page = restarted.retry(held.quarantined)

    assert contents(filled) == [b"edit 2"]
    assert contents(page) == [b"edit 3", b"edit 4"]


def test_swapped_envelopes_find_their_order(world):
    chain = world.chain(world.owner.device, 3)

    page = world.reader(heads={}).read(entries([chain[0], chain[2], chain[1]]))

    assert contents(page) == [b"edit 1", b"edit 3", b"edit 2"]
    assert page.quarantined == []


def test_a_chain_that_does_not_name_its_predecessor_is_refused(world):
    ours, theirs = world.chain(world.owner.device, 2), world.chain(world.owner.device, 2, "other")
    reader = world.reader()
    reader.read(entries(ours[:1]))

    assert reasons(reader.read(entries(theirs[1:], first_seq=2))) == ["prev"]


@pytest.mark.parametrize(("counter", "prev"), [(1, bytes([7]) * 32), (2, bytes(32))])
def test_only_a_first_envelope_has_no_predecessor(world, counter, prev):
    sealer = Sealer(world.owner.device, world.entropy)
    envelope = sealer.seal(Kind.CHANGE, b"x", world.keys, Counter(counter), EnvelopeId(prev), world.log.head_prefix)

    assert reasons(world.reader().read(entries([envelope]))) == ["prev"]


def test_a_new_reader_starts_a_chain_at_the_first_envelope_that_verifies(world):
    chain = world.chain(world.owner.device, 6)
    broken = flipped(chain[2].data, len(chain[2].data) - 1)

    page = world.reader().read([*entries([broken]), *entries(chain[4:], first_seq=5)])

    assert contents(page) == [b"edit 5", b"edit 6"]
    assert reasons(page) == ["signature"]


def test_one_signature_vouches_for_the_run_before_it(world):
    chain = world.chain(world.owner.device, 4)
    datas = [flipped(envelope.data, len(envelope.data) - 1) for envelope in chain[:3]] + [chain[3].data]

    page = world.reader().read(entries(datas))

    assert contents(page) == [b"edit 1", b"edit 2", b"edit 3", b"edit 4"]


def test_a_run_whose_end_is_forged_is_quarantined_from_the_first_bad_one(world):
    chain = world.chain(world.owner.device, 5)
    datas = [envelope.data for envelope in chain[:3]]
    datas += [flipped(envelope.data, len(envelope.data) - 1) for envelope in chain[3:]]

    page = world.reader().read(entries(datas))

    assert contents(page) == [b"edit 1", b"edit 2", b"edit 3"]
    assert reasons(page) == ["signature", "signature"]
    assert page.heads[world.owner.device.device].counter == 3


def test_a_later_valid_envelope_releases_the_quarantined(world):
    chain = world.chain(world.owner.device, 5)
    reader = world.reader()
    datas = [chain[0].data, *(flipped(envelope.data, len(envelope.data) - 1) for envelope in chain[1:3])]
    assert reasons(reader.read(entries(datas))) == ["signature", "signature"]

    page = reader.read(entries(chain[3:], first_seq=4))

    assert contents(page) == [b"edit 2", b"edit 3", b"edit 4", b"edit 5"]
    assert [opened.source.seq for opened in page.opened] == [2, 3, 4, 5]
    assert page.quarantined == []


def test_a_forged_branch_does_not_hold_up_the_true_one(world):
    chain = world.chain(world.owner.device, 3)
    forged = flipped(chain[1].data, HEADER_BYTES)
    reader = world.reader()

    page = reader.read(entries([chain[0].data, forged, chain[1].data, chain[2].data]))

    assert contents(page) == [b"edit 1", b"edit 2", b"edit 3"]
    assert reasons(page) == ["signature"]


def test_the_same_envelope_with_its_true_signature_is_taken_later(world):
    chain = world.chain(world.owner.device, 2)
    reader = world.reader()
    reader.read(entries([chain[0].data, flipped(chain[1].data, len(chain[1].data) - 1)]))

    assert contents(reader.read(entries([chain[1]], first_seq=3))) == [b"edit 2"]


def test_a_device_that_skips_counters_vouches_for_nothing_below(world):
    chain = world.chain(world.owner.device, 1)
    sealer = Sealer(world.owner.device, world.entropy)
    jump = sealer.seal(Kind.CHANGE, b"jump", world.keys, Counter(7), chain[0].id, world.log.head_prefix)
    reader = world.reader()

    page = reader.read(entries([*chain, jump]))

    assert contents(page) == [b"edit 1"]
    assert reasons(page) == ["gap"]


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


def test_an_adopted_head_is_gone_on_from(world):
    chain = world.chain(world.owner.device, 3)
    reader = world.reader()

    reader.adopt(world.owner.device.device, ChainHead(Counter(2), chain[1].id))

    assert contents(reader.read(entries(chain[2:]))) == [b"edit 3"]


def test_a_flood_of_forged_envelopes_does_not_keep_the_true_chain_out(world):
    chain = world.chain(world.owner.device, 2)
    forged = [flipped(chain[1].data, HEADER_BYTES + at) for at in range(140)]
    forged += [chain[1].data[:40] + Counter(1000 + n).to_bytes(8, "big") + chain[1].data[48:] for n in range(300)]

    page = world.reader().read(entries([chain[0].data, *forged, chain[1].data]))

    assert contents(page) == [b"edit 1", b"edit 2"]
    assert len(page.quarantined) == len(forged)


def test_a_signature_under_another_label_is_refused(world):
    (envelope,) = world.chain(world.owner.device, 1)
    other = world.owner.device.sign.sign(label("log-sig", envelope.id))

    assert reasons(world.reader().read(entries([envelope.data[:-SIGNATURE_BYTES] + other]))) == ["signature"]


def test_a_revoked_device_s_old_envelopes_stay_readable(world):
    chain = world.chain(world.owner.device, 2)
    entry = revoke_entry(world.owner.keys, world.owner.state, world.owner.device.device)
    world.owner.state = replay_account([entry], world.owner.state)

    assert contents(world.reader().read(entries(chain))) == [b"edit 1", b"edit 2"]


def test_entries_are_judged_in_pages_of_any_size_alike(world):
    chain = entries(world.chain(world.owner.device, 12))

    def read_by(size: int) -> list[Entry]:
        reader = world.reader()
        return [c for at in range(0, 12, size) for c in contents(reader.read(chain[at : at + size]))]

    assert read_by(1) == read_by(5) == read_by(12)


DELIVERY = st.lists(
    st.tuples(st.integers(min_value=0, max_value=7), st.sampled_from(["true", "unsigned", "altered"]), st.booleans()),
    max_size=20,
)
LONG_CHAIN = SMALL_WORLD.chain(SMALL_WORLD.owner.device, 8)


@given(DELIVERY)
def test_whatever_a_server_delivers_first_the_true_chain_opens_each_envelope_once(delivery):
    reader = SMALL_WORLD.reader()
    opened = contents(reader.read(entries(LONG_CHAIN[:1])))
    page: list[bytes] = []
    for number, form, ends_page in delivery:
        data = LONG_CHAIN[number].data
        page.append({"true": data, "unsigned": flipped(data, len(data) - 1), "altered": flipped(data, 120)}[form])
        if ends_page:
            opened += contents(reader.read(entries(page)))
            page = []
    opened += contents(reader.read(entries(page)))

    opened += contents(reader.read(entries(LONG_CHAIN)))

    assert sorted(opened) == [f"edit {number}".encode() for number in range(1, 9)]
    assert reader.head_of(SMALL_WORLD.owner.device.device) == ChainHead(Counter(8), LONG_CHAIN[7].id)


HEADER = SMALL_CHAIN[0].header_bytes


@given(st.lists(st.binary(max_size=400).flatmap(lambda data: st.sampled_from([data, HEADER + data]))))
def test_no_bytes_make_the_reader_fail_or_open_anything(datas):
    page = SMALL_WORLD.reader().read(entries(datas))

    assert page.opened == []
    assert len(page.quarantined) == len(datas)


def test_only_what_can_never_count_is_not_tried_again():
    final = {reason for reason in QuarantineReason if not reason.is_worth_a_retry}

    assert final == {"layout", "space", "kind", "role", "replay"}
    assert not any(reason.may_differ for reason in final)
