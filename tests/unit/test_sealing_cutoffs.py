"""Cutoffs, as every reader judges them: what was sealed after a role or a device ended does not count."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.membership_world import Membership
from tests.unit.sealing_world import Person, contents, entries, flipped, reasons
from twinlock.ids import NO_ENVELOPE, Counter
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.envelope import Envelope, Kind
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.sealing import DeviceKeys, QuarantineReason, Sealer, revoke_entry


class Author:
    """A person's device in a space: it seals whatever it likes, naming any head of the log that it has seen."""

    def __init__(self, space: Membership, name: str, role: Role = Role.EDITOR) -> None:
        self.space, self.person = space, Person(name)
        self.device = self.person.device
        self.chain: list[Envelope] = []
        space.admit(self.person, role)

    def writes(self, count: int = 1, log: SpaceLogState | None = None, kind: Kind = Kind.CHANGE) -> list[Envelope]:
        """Seal the next envelopes of the chain under the newest keys; `log` is what the author claims to know."""
        made = [self._seal(log or self.space.log, kind) for _ in range(count)]
        return made

    def forgets(self, count: int) -> None:
        """Go on from an earlier place of the chain, as after a refusal."""
        del self.chain[-count:]

    def _seal(self, log: SpaceLogState, kind: Kind) -> Envelope:
        sealer, counter = Sealer(self.device, self.space.entropy), Counter(len(self.chain) + 1)
        prev = self.chain[-1].id if self.chain else NO_ENVELOPE
        payload = f"{self.person.keys.account.hex()[:4]} {counter}".encode()
        if kind is Kind.DROP:
            drop_pk = log.epochs[log.epoch].drop_pk
            envelope = sealer.seal_drop(payload, log.space, log.epoch, drop_pk, (counter, prev, log.head_prefix))
        else:
            envelope = sealer.seal(kind, payload, self.space.epochs[log.epoch], counter, prev, log.head_prefix)
        self.chain.append(envelope)
        return envelope

    @property
    def cutoff(self) -> dict:
        return {self.device.device: Counter(len(self.chain))}


@pytest.fixture
def space() -> Membership:
    return Membership(Person("owner of the cutoffs"))


@pytest.fixture
def author(space: Membership) -> Author:
    return Author(space, "author")


def verdicts(space: Membership, envelopes: list[Envelope]) -> list[str]:
    """Return for each envelope why it was refused, or "opened", as a new reader finds it."""
    page = space.reader().read(entries(envelopes))
    refused = {kept.entry.seq: str(kept.reason) for kept in page.quarantined}
    return [refused.get(seq, "opened") for seq in range(1, len(envelopes) + 1)]


ENDINGS = {
    "removed": lambda space, person, cutoff: space.remove(person, cutoff),
    "left": lambda space, person, cutoff: space.leave(person, cutoff),
    "made a reader": lambda space, person, cutoff: space.lower(person, Role.READER, cutoff),
}


def given_back(space: Membership, author: Author) -> None:
    space.grow(space.member(author.person, Role.EDITOR))


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_sealed_before_the_end_stays_readable(space, author, ending):
    before = author.writes(3)
    ENDINGS[ending](space, author.person, author.cutoff)

    assert verdicts(space, before) == ["opened"] * 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_back_dated_envelope_does_not_count(space, author, ending):
    """A dishonest server takes what a former member seals, who claims not to know that it is none any more."""
    before, while_a_member = author.writes(2), space.log
    ENDINGS[ending](space, author.person, author.cutoff)
    back_dated, open_about_it = author.writes(1, while_a_member), author.writes(1)

    assert verdicts(space, before + back_dated + open_about_it) == ["opened", "opened", "cutoff", "cutoff"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_device_that_never_wrote_cannot_begin_to(space, author, ending):
    while_a_member, second = space.log, DeviceKeys.make(author.person.entropy)
    author.writes(2)
    ENDINGS[ending](space, author.person, author.cutoff)
    author.person.certify(second)
    author.device, author.chain = second, []

    assert verdicts(space, author.writes(2, while_a_member)) == ["cutoff", "cutoff"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_later_grant_counts_from_its_own_place_on(space, author, ending):
    before, while_a_member = author.writes(2), space.log
    ENDINGS[ending](space, author.person, author.cutoff)
    without = space.log
    given_back(space, author)
    early = author.writes(1, while_a_member)
    author.forgets(1)
    between = author.writes(1, without)
    author.forgets(1)
    after = author.writes(2)

    assert verdicts(space, before + early + between + after) == ["opened"] * 2 + ["cutoff"] * 2 + ["opened"] * 2


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_envelope_below_the_cutoff_still_needs_the_role_that_it_claims(space, author, ending):
    author.writes(2)
    cutoff = author.cutoff
    ENDINGS[ending](space, author.person, cutoff)
    author.forgets(1)
    author.writes(1)

    assert verdicts(space, author.chain) == ["opened", "role"]


def test_a_lower_role_that_still_writes_counts_from_the_entry_that_lowers_it(space):
    admin = Author(space, "admin", Role.ADMIN)
    before, as_an_admin = admin.writes(1), space.log
    space.lower(admin.person, Role.EDITOR, admin.cutoff)
    back_dated = admin.writes(1, as_an_admin)
    admin.forgets(1)
    at_that_entry = admin.writes(1)
    space.rotate()
    later = admin.writes(1)

    assert verdicts(space, before + back_dated + at_that_entry + later) == ["opened", "cutoff", "opened", "opened"]


def test_who_became_a_sender_sends_from_then_on_and_does_not_write(space, author):
    as_an_editor = space.log
    before = author.writes(1)
    space.lower(author.person, Role.SENDER, author.cutoff)
    found = []
    for kind, log in ((Kind.CHANGE, space.log), (Kind.DROP, as_an_editor), (Kind.SNAPSHOT, as_an_editor)):
        found += author.writes(1, log, kind)
        author.forgets(1)
    drops = author.writes(2, kind=Kind.DROP)

    assert verdicts(space, before + found + drops) == ["opened", "cutoff", "cutoff", "cutoff", "opened", "opened"]


def test_a_grant_before_the_cutoff_lifts_nothing(space, author):
    given_back(space, author)
    at_the_grant = space.log
    before = author.writes(1)
    space.cut(author.person, author.cutoff)

    assert verdicts(space, before + author.writes(1, at_the_grant)) == ["opened", "cutoff"]


# Devices


def revoke(author: Author) -> None:
    person = author.person
    person.state = replay_account([revoke_entry(person.keys, person.state, author.device.device)], person.state)


def test_a_revoked_device_is_cut_off_for_good(space, author):
    before, at_that_time = author.writes(2), space.log
    revoke(author)
    space.cut(author.person, author.cutoff)
    given_back(space, author)
    space.remove(author.person, author.cutoff)
    given_back(space, author)
    thief = author.writes(1, at_that_time) + author.writes(1)

    assert verdicts(space, before + thief) == ["opened", "opened", "cutoff", "cutoff"]


def test_the_other_devices_of_the_account_go_on(space, author):
    lost, before = author.device, author.writes(1)
    second = DeviceKeys.make(author.person.entropy)
    author.person.certify(second)
    revoke(author)
    space.cut(author.person, author.cutoff)
    author.device, author.chain = second, []

    assert lost.device != second.device
    assert verdicts(space, before + author.writes(2)) == ["opened"] * 3


def test_a_device_that_was_cut_off_and_not_revoked_goes_on_after_a_grant(space, author):
    author.writes(1)
    space.cut(author.person, author.cutoff, by=space.owner)
    cut = author.writes(1)
    author.forgets(1)
    given_back(space, author)

    assert verdicts(space, author.chain + cut + author.writes(1)) == ["opened", "cutoff", "opened"]


def test_what_a_device_wrote_between_two_memberships_and_its_revocation_stays(space, author):
    first = author.writes(1)
    space.leave(author.person, author.cutoff)
    given_back(space, author)
    second = author.writes(1)
    revoke(author)
    space.cut(author.person, author.cutoff)

    assert verdicts(space, first + second + author.writes(1)) == ["opened", "opened", "cutoff"]


def test_a_revoked_device_can_be_cut_off_before_it_ever_wrote(space, author):
    """Who joins a space later on cuts its lost devices off there too: the two logs have no common order."""
    revoke(author)
    space.cut(author.person, {author.device.device: Counter(0)})
    given_back(space, author)

    assert verdicts(space, author.writes(2)) == ["cutoff", "cutoff"]


# What a reader already has


def test_a_cut_off_envelope_moves_nothing(space, author):
    before, while_a_member = author.writes(1), space.log
    space.leave(author.person, author.cutoff)
    given_back(space, author)
    reader = space.reader()
    reader.read(entries(before))
    page = reader.read(entries(author.writes(1, while_a_member), 2))
    author.forgets(1)

    assert (reasons(page), page.heads, page.quarantined[0].admitted) == (["cutoff"], {}, False)
    assert len(contents(reader.read(entries(author.writes(1), 3)))) == 1


def test_a_cutoff_does_not_hold_compaction_back_and_is_not_tried_again():
    assert not QuarantineReason.CUTOFF.may_differ
    assert not QuarantineReason.CUTOFF.is_worth_a_retry


def test_a_cutoff_that_comes_late_judges_what_was_not_opened_yet(space, author):
    """The keys were missing, so the envelope waited; meanwhile its author was removed."""
    (envelope,) = author.writes(1)
    keys, reader = space.epochs.pop(space.log.epoch), space.reader()
    held = reader.read(entries([envelope]))
    space.epochs[keys.epoch] = keys
    assert [(str(kept.reason), kept.admitted) for kept in held.quarantined] == [("key", True)]

    space.remove(author.person, {})
    reader.update(space.log, [])

    assert reasons(reader.retry(held.quarantined)) == ["cutoff"]


def test_what_was_opened_before_the_cutoff_was_known_stays(space, author):
    """The threat model says so: a dishonest server can deliver it first."""
    reader = space.reader()
    opened = reader.read(entries(author.writes(1)))
    space.remove(author.person, {})
    reader.update(space.log, [])

    assert len(opened.opened) == 1
    assert verdicts(space, author.chain) == ["cutoff"]


def test_a_later_envelope_does_not_vouch_for_one_that_was_cut_off_meanwhile(space, author):
    """Every reader comes to the same verdict, whether or not it saw the envelope before the cutoff."""
    before, while_a_member = author.writes(1), space.log
    reader = space.reader()
    reader.read(entries(before))
    (cut,) = author.writes(1, while_a_member)
    unsigned = flipped(cut.data, len(cut.data) - 1)
    held = reader.read(entries([unsigned], 2))
    assert reasons(held) == ["signature"]

    space.leave(author.person, {author.device.device: Counter(1)})
    given_back(space, author)
    reader.update(space.log, [])
    retried = reader.retry(held.quarantined)
    page = reader.read(entries(author.writes(1), 3))

    assert (reasons(retried), contents(page), reasons(page)) == (["cutoff"], [], ["gap"])
    assert reasons(space.reader().read(entries([*before, cut, *author.chain[2:]]))) == ["cutoff", "gap"]


# Determinism


def a_busy_log() -> tuple[Membership, list[Envelope]]:
    """Return a space in which roles and devices ended and came back, and everything anybody sealed meanwhile."""
    space = Membership(Person("busy owner"), seed="busy")
    first, second = Author(space, "first"), Author(space, "second", Role.ADMIN)
    everything = first.writes(2) + second.writes(1)
    early = space.log
    space.lower(first.person, Role.READER, first.cutoff)
    everything += first.writes(1)
    first.forgets(1)
    everything += first.writes(1, early)
    first.forgets(1)
    given_back(space, first)
    everything += first.writes(2) + second.writes(2, early)
    revoke(second)
    space.cut(second.person, second.cutoff)
    everything += second.writes(2) + first.writes(1, early)
    first.forgets(1)
    space.remove(first.person, first.cutoff)
    everything += first.writes(1, early) + space.chain(space.owner.device, 2, "owner")
    return space, everything


BUSY, EVERYTHING = a_busy_log()


def outcome(splits: set[int]) -> tuple[dict, dict, dict]:
    """Read all of the busy log in pages, and return what was opened, what was refused, and the heads of chains."""
    reader, opened, refused, heads = BUSY.reader(), {}, {}, {}
    placed, bounds = entries(EVERYTHING), sorted({0, *splits, len(EVERYTHING)})
    for start, end in itertools.pairwise(bounds):
        page = reader.read(placed[start:end])
        for kept in page.quarantined:
            refused[kept.entry.seq] = str(kept.reason)
        for each in page.opened:
            refused.pop(each.source.seq, None)
            opened[each.source.seq] = each.content
        heads.update(page.heads)
    return opened, refused, heads


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, len(EVERYTHING))))
def test_pages_make_no_difference(splits):
    at_once = outcome(set())

    assert outcome(splits) == at_once
    assert sorted(at_once[1].values()) == ["cutoff"] * 6
