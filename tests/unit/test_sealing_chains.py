"""Chains of envelopes: gaps, replays, forged ends, and what a signature vouches for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sealing_world import World, contents, entries, flipped, reasons
from twinlock.ids import Counter, EnvelopeId
from twinlock.protocol.envelope import HEADER_BYTES, Kind
from twinlock.protocol.frames import Entry
from twinlock.sealing import ChainHead, Sealer


@pytest.fixture
def world() -> World:
    return World()


SMALL_WORLD = World()


def test_a_later_page_goes_on_from_the_stored_heads(world):
    chain = world.chain(world.owner.device, 4)
    first = world.reader().read(entries(chain[:2]))

    page = world.reader(heads=first.heads).read(entries(chain[2:], first_seq=3))

    assert contents(page) == [b"edit 3", b"edit 4"]


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
