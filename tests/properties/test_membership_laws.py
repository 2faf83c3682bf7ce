"""Laws of the membership log: whatever is appended, nobody gets in whom an owner or admin did not let in."""

import itertools
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.membership_world import Membership
from tests.unit.sealing_world import Person
from tests.vectors import plain_membership
from twinlock.errors import LogInvalidError, SignatureError, TwinlockError, UpdateNeededError
from twinlock.ids import Counter, DeviceId
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.envelope import Kind
from twinlock.protocol.signed_log import NO_LOG, LogPosition, encode_body
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import config_lease_entry
from twinlock.sealing.identity import sign_entry
from twinlock.sealing.invites import InviteKeys, join_entry, uninvite_entry
from twinlock.sealing.space_entries import config_offline_entry, shred_entry

PEOPLE = [Person(f"person {number}") for number in range(5)]
FOUNDER, *OTHERS = PEOPLE
GHOST = Person("ghost")
DEVICE = DeviceId(bytes(range(16)))
REFUSED = (LogInvalidError, SignatureError, UpdateNeededError)

KINDS = ["member", "lower", "remove", "leave", "cutoff", "rekem", "epoch", "invite", "uninvite", "join", "config"]
OFTEN = ["member", "invite", "join", "join", "remove"]
steps = st.tuples(
    st.sampled_from(KINDS + OFTEN),
    st.one_of(st.just(FOUNDER), st.sampled_from(PEOPLE)),
    st.integers(0, 59),
    st.sampled_from(list(Role)),
    st.booleans(),
)
histories = st.lists(steps, min_size=12, max_size=40)


class History:
    """A space in which anybody tries anything: what the rules let in, and who signed it."""

    def __init__(self) -> None:
        self.space = Membership(FOUNDER, seed="laws")
        self.invites: list[InviteKeys] = []
        self.states: list[SpaceLogState] = [self.space.log]

    def run(self, history) -> "History":
        for kind, by, number, role, flag in history:
            try:
                self._try(kind, by, number, role, flag)
            except (TwinlockError, LookupError, AssertionError):
                # Refused by the rules, or such that no device could even make the entry.
                continue
            self.states.append(self.space.log)
        return self

    def _try(self, kind, by, number, role, flag):
        space, person = self.space, PEOPLE[number % len(PEOPLE)]
        present = [each for each in PEOPLE if space.role(each) is not None]
        member = present[number % len(present)]
        strangers = [each for each in PEOPLE if each not in present] or PEOPLE
        stranger = strangers[number % len(strangers)]
        tries = {
            "member": lambda: space.admit(person, role, by),
            "lower": lambda: space.lower(member, role, {DEVICE: Counter(number)}, by),
            "remove": lambda: space.remove(member, {DEVICE: Counter(number)}, by),
            "leave": lambda: space.leave(member),
            "cutoff": lambda: space.cut(member, {DEVICE: Counter(number)}, by),
            "rekem": lambda: space.grow(space.raw(member, "rekem", kem=GHOST.keys.kem_pk)),
            "epoch": lambda: space.rotate(by),
            "invite": lambda: self.invites.append(space.invite(role, number % 3 + 1, needs_approval=flag, by=by)),
            "uninvite": lambda: space.grow(uninvite_entry(by.keys, space.log, self.invites[-1 - number % 3].id)),
            "join": lambda: space.join(stranger, self.invites[-1 - number % 3]),
            "config": lambda: space.grow(config_lease_entry(by.keys, space.log, number)),
        }
        tries[kind]()


def author_and_type(entry: SignedEntry) -> tuple[object, str]:
    body = json.loads(entry.body)
    by = next(person.keys.account for person in PEOPLE if f'"by":"{_text(person.keys.account)}"' in entry.body.decode())
    return by, body["type"]


def _text(data: bytes) -> str:
    return json.loads(encode_body("x", {"v": data}))["v"]


@settings(max_examples=60, deadline=None)
@given(histories)
def test_whatever_is_tried_the_log_keeps_its_laws(history):
    ran = History().run(history)

    for before, after, entry in zip(ran.states, ran.states[1:], ran.space.entries[2:], strict=False):
        by, kind = author_and_type(entry)
        assert after.owners
        assert not set(after.members) & (set(after.former) | set(after.applicants))
        admits = before.role_of(by) in (Role.OWNER, Role.ADMIN)
        _check_members(before, after, by, kind, admits=admits)
        _check_keys(before, after, kind)
        assert all(after.members[each.by].role.may_admit for each in after.invites.values())


def _check_members(before, after, by, kind, *, admits):
    for account in {*before.members, *after.members}:
        was, now = before.role_of(account), after.role_of(account)
        if now == was:
            continue
        if kind == "join":
            assert (account, was) == (by, None)
            assert not now.may_admit
            former = before.former.get(account)
            opened = [invite.seq for name, invite in before.invites.items() if _was_used(name, before, after)]
            assert former is None or former.removed_seq < min(opened)
        elif kind == "leave":
            assert (account, now) == (by, None)
        else:
            assert kind in ("member", "remove")
            assert admits
            assert before.role_of(by) is Role.OWNER or not {was, now} & {Role.OWNER, Role.ADMIN}
        if now is not None:
            # A role is never held without a grant at this very entry.
            assert after.members[account].granted[-1] == (after.seq, now)


def _was_used(name, before, after) -> bool:
    left = after.invites.get(name)
    return left is None or left.uses_left < before.invites[name].uses_left


def _check_keys(before, after, kind):
    assert after.epoch - before.epoch == (kind in ("epoch", "remove"))
    lost = {name for name in before.key_holders if name not in after.key_holders and name in before.members}
    if lost and kind != "remove":
        assert after.wants_rotation
    if kind in ("epoch", "remove"):
        assert not after.wants_rotation
    for account in set(before.former) & set(after.former):
        # What a former member wrote is judged by the same history for good.
        shown = before.former[account].granted
        assert after.former[account].granted[: len(shown)] == shown
        kept = after.former[account].cutoffs
        assert all(_is_kept(cutoff, kept) for cutoff in before.former[account].cutoffs)


def _is_kept(cutoff, kept):
    """Tell whether a cutoff is still there, or others of some devices forbid all of it."""
    return cutoff in kept or (
        not cutoff.is_whole
        and all(
            any(
                not each.is_whole and each.seq >= cutoff.seq and each.counters.get(device, counter + 1) <= counter
                for each in kept
            )
            for device, counter in cutoff.counters.items()
        )
    )


@settings(max_examples=40, deadline=None)
@given(histories, st.data())
def test_a_log_is_replayed_in_pieces_as_at_once(history, data):
    entries = History().run(history).space.entries
    places = data.draw(st.sets(st.integers(1, len(entries) - 1)))
    state = None
    for start, end in itertools.pairwise(sorted({0, *places, len(entries)})):
        state = replay_space(entries[start:end], state)

    at_once = replay_space(entries)
    assert state == at_once
    # What is stored of it is read back the same: a device does not replay from the genesis each time.
    assert msgspec.structs.asdict(state) == msgspec.structs.asdict(at_once)


# Outsiders and readers


def a_household() -> Membership:
    """Return a space with a reader, a sender, an editor, a former and an applying member, and open invites."""
    space = Membership(FOUNDER, seed="household")
    editor, reader, sender, gone = OTHERS
    for person, role in ((editor, Role.EDITOR), (reader, Role.READER), (sender, Role.SENDER), (gone, Role.ADMIN)):
        space.admit(person, role)
    open_invite = space.invite(Role.READER, uses=9)
    space.remove(gone)
    space.join(Person("applicant"), space.invite(Role.EDITOR, needs_approval=True))
    space.join(Person("guest"), open_invite)
    return space


SPACE = a_household()
EDITOR, READER, SENDER, GONE = OTHERS

values = st.sampled_from(
    [
        *(person.keys.account for person in (*PEOPLE, GHOST)),
        *(person.keys.sign_pk for person in (*PEOPLE, GHOST)),
        *(person.keys.kem_pk for person in (*PEOPLE, GHOST)),
        *SPACE.log.invites,
        *(str(role) for role in Role),
        *(0, 1, 2, SPACE.log.epoch + 1),
        *(b"", bytes(32), bytes(60), bytes(64)),
        {},
        {DEVICE: 0},
        {"n": SPACE.log.epoch + 1, "b_commit": bytes(32), "dk_commit": bytes(32), "drop_pk": GHOST.keys.kem_pk},
    ]
)
FIELDS = {
    "member": ["account", "sign", "kem", "role", "cutoff"],
    "invite": ["id", "sign", "kem", "role", "expires", "uses", "approve"],
    "join": ["invite", "sign", "kem", "isig"],
    "uninvite": ["id"],
    "remove": ["account", "cutoff", "epoch"],
    "epoch": ["n", "b_commit", "dk_commit", "drop_pk", "link"],
    "cutoff": ["account", "counters"],
    "config": ["lease_hours", "offline_needs", "title", "epoch"],
    "leave": ["cutoff"],
    "rekem": ["kem"],
    "shred": [],
}
KEPT_BY_READERS = {"leave", "cutoff", "rekem"}
"""What everybody says of itself: it adds nobody and raises nobody."""


@st.composite
def attempts(draw, signers, names):
    """Return who signs, in whose name, what."""
    kind = draw(st.sampled_from(sorted(FIELDS)))
    right = {"member": _member_fields, "remove": _remove_fields, "invite": _invite_fields}.get(kind, lambda _: {})
    fields = right(draw(st.sampled_from([*PEOPLE, GHOST])))
    for name in FIELDS[kind]:
        if name not in fields or draw(st.integers(0, 9)) == 0:
            fields[name] = draw(values)
    return draw(st.sampled_from(signers)), draw(st.sampled_from(names)), kind, fields


def _member_fields(person):
    keys = person.keys
    return {"account": keys.account, "sign": keys.sign_pk, "kem": keys.kem_pk, "role": "editor"}


def _remove_fields(person):
    commits = {"b_commit": bytes(32), "dk_commit": bytes(32), "drop_pk": GHOST.keys.kem_pk, "link": bytes(60)}
    return {"account": person.keys.account, "cutoff": {}, "epoch": {"n": SPACE.log.epoch + 1, **commits}}


def _invite_fields(person):
    keys = InviteKeys(person.entropy(64))
    terms = {"role": "editor", "expires": 1, "uses": 5, "approve": 0}
    return {"id": keys.id, "sign": keys.sign_pk, "kem": keys.kem_pk, **terms}


def tried(state: SpaceLogState, attempt) -> SpaceLogState:
    signer, name, kind, fields = attempt
    body = encode_body(kind, {"by": name.keys.account, **fields})
    try:
        return replay_space([sign_entry(signer.keys, state.space, state.position, body)], state)
    except REFUSED:
        return state


@settings(deadline=None)
@given(st.lists(attempts(signers=[GHOST, GONE], names=[*PEOPLE, GHOST]), max_size=4))
def test_nothing_that_an_outsider_signs_is_taken(attempted):
    state = SPACE.log
    for attempt in attempted:
        state = tried(state, attempt)

    assert state is SPACE.log


@settings(deadline=None)
@given(st.lists(attempts(signers=[EDITOR, READER, SENDER], names=[*PEOPLE, GHOST]), max_size=6))
def test_editors_readers_and_senders_change_nobody_but_themselves(attempted):
    state = SPACE.log
    for attempt in attempted:
        signer, _, kind, _ = attempt
        before, state = state, tried(state, attempt)
        assert state is before or kind in KEPT_BY_READERS
        same = {name: each for name, each in before.members.items() if name != signer.keys.account}
        assert {name: each for name, each in state.members.items() if name != signer.keys.account} == same
        assert state.role_of(signer.keys.account) in (before.role_of(signer.keys.account), None)
    assert (state.epoch, state.invites, state.applicants) == (SPACE.log.epoch, SPACE.log.invites, SPACE.log.applicants)


# A dishonest server


@st.composite
def splices(draw):
    """Return what a server can make of the entries it holds: bodies and signatures in any order, some of them often."""
    bodies = [entry.body for entry in SPACE.entries]
    signatures = [entry.sig for entry in SPACE.entries] + [bytes(64)]
    start = draw(st.integers(0, len(SPACE.entries)))
    honest = SPACE.entries[:start]
    pairs = st.one_of(
        st.sampled_from(SPACE.entries),
        st.builds(SignedEntry, st.sampled_from(bodies), st.sampled_from(signatures)),
    )
    return honest + draw(st.lists(pairs, max_size=6))


@settings(max_examples=200, deadline=None)
@given(splices())
def test_a_server_that_splices_entries_gets_a_beginning_of_the_true_log_or_nothing(entries):
    try:
        state = replay_space(entries)
    except REFUSED:
        return

    assert entries == SPACE.entries[: len(entries)]
    assert GHOST.keys.account not in {*state.members, *state.former, *state.applicants}


def test_a_server_that_makes_a_space_of_its_own_cannot_give_it_the_space_s_id():
    fields = {"nonce": bytes(16), "partition": 3, "sign": GHOST.keys.sign_pk, "kem": GHOST.keys.kem_pk}
    body = encode_body("genesis", {"by": GHOST.keys.account, **fields})
    own = replay_space([sign_entry(GHOST.keys, NO_LOG, LogPosition(), body)])

    assert own.space != SPACE.log.space
    with pytest.raises(REFUSED):
        replay_space(SPACE.entries[1:], own)


def test_a_server_s_own_account_is_let_in_by_nothing_that_it_has_seen():
    """It sees every public key, every invite's id and keys, and every join; it holds no invite's secret."""
    state = SPACE.log
    joins = [json.loads(entry.body) for entry in SPACE.entries if b'"type":"join"' in entry.body]
    assert len(joins) == 2
    for seen, invite in itertools.product(joins, state.invites):
        keys = GHOST.keys
        fields = {"sign": keys.sign_pk, "kem": keys.kem_pk, "isig": seen["isig"]}
        for name in (invite, seen["invite"]):
            body = encode_body("join", {"by": keys.account, "invite": name, **fields})
            with pytest.raises(LogInvalidError):
                replay_space([sign_entry(keys, state.space, state.position, body)], state)
    own_invite = InviteKeys(GHOST.entropy(64))
    with pytest.raises(LogInvalidError):
        replay_space([join_entry(GHOST.keys, state, own_invite)], state)


# The page


def code_of(entries: list[SignedEntry]) -> str:
    """Return why the package refuses a log, empty if it does not."""
    try:
        replay_space(entries)
    except REFUSED as exc:
        return exc.code
    return ""


def code_by_the_page(entries: list[SignedEntry]) -> str:
    """Return the same by a replay that was written from the page alone."""
    try:
        plain_membership.replay([(entry.body, entry.sig) for entry in entries])
    except plain_membership.RefusedError as exc:
        return str(exc)
    return ""


@settings(max_examples=200, deadline=None)
@given(attempts(signers=[FOUNDER, *OTHERS, GHOST], names=[FOUNDER, *OTHERS]))
def test_an_entry_is_judged_as_the_page_says(attempt):
    signer, name, kind, fields = attempt
    body = encode_body(kind, {"by": name.keys.account, **fields})
    state = SPACE.log
    entries = [*SPACE.entries, sign_entry(signer.keys, state.space, state.position, body)]

    assert code_of(entries) == code_by_the_page(entries)


@settings(max_examples=30, deadline=None)
@given(histories)
def test_a_log_says_what_the_page_says(history):
    ran = History().run(history)
    state = ran.space.log
    plain = plain_membership.replay([(entry.body, entry.sig) for entry in ran.space.entries])

    for told, records in ((plain["members"], state.members), (plain["former"], state.former)):
        assert {bytes.fromhex(name) for name in told} == set(records)
        for name, record in records.items():
            each = told[name.hex()]
            assert (each["role"], each["kem"]) == (record.role, record.kem_pk)
            assert [tuple(grant) for grant in each["roles"]] == list(record.granted)
            assert (each["removed_seq"], each["barred_seq"]) == (record.removed_seq, record.barred_seq)
            for counter in range(1, 62):
                judged = [record.is_cut_off(DEVICE, counter, Kind.CHANGE, state.seq, is_revoked=flag) for flag in FLAGS]
                assert judged == [_is_cut_off(each, counter, is_revoked=flag) for flag in FLAGS]
    assert {bytes.fromhex(name): each["uses"] for name, each in plain["invites"].items()} == {
        name: each.uses_left for name, each in state.invites.items()
    }
    assert {bytes.fromhex(name): kem for name, kem in plain["key_holders"].items()} == state.key_holders
    assert set(plain["applicants"]) == {name.hex() for name in state.applicants}
    assert (plain["wants_rotation"], plain["head"]) == (state.wants_rotation, state.head)


FLAGS = (False, True)


def _is_cut_off(record, counter: int, *, is_revoked: bool) -> bool:
    """Judge a change that names the newest head of the log by every cutoff that the page knows of."""
    for cutoff in record["cutoffs"]:
        limit = cutoff["counters"].get(DEVICE.hex(), 0 if cutoff["is_whole"] else None)
        if limit is None or counter <= limit:
            continue
        granted = [role for seq, role in record["roles"] if seq >= cutoff["seq"] and role in WRITERS]
        if not granted or (is_revoked and not cutoff["is_whole"]):
            return True
    return False


WRITERS = (Role.OWNER, Role.ADMIN, Role.EDITOR)


def test_nothing_is_appended_behind_a_shred():
    state = replay_space([shred_entry(FOUNDER.keys, SPACE.log)], SPACE.log)
    for attempt in (config_offline_entry(FOUNDER.keys, state, ""), shred_entry(FOUNDER.keys, state)):
        with pytest.raises(LogInvalidError):
            replay_space([attempt], state)
