"""What the server decides for each pushed envelope, in the order of its checks."""

import os

import msgspec
import pytest

from tests.server_kit import Chain
from twinlock.contracts import DeviceHead
from twinlock.ids import Counter, Epoch, SpaceId
from twinlock.protocol.envelope import Kind, parse
from twinlock.protocol.limits import ENVELOPE_BYTES_MAX
from twinlock.protocol.space_log import Applicant, Cutoff, Member, Role, SpaceLogState
from twinlock.sealing.identity import DeviceKeys
from twinlock.server.sequencer import Author, Decision, Sequencer

SPACE = SpaceId(b"s" * 16)
ACCOUNT = b"a" * 16


def rules(role: Role = Role.OWNER, epoch: int = 1) -> SpaceLogState:
    return SpaceLogState(
        space=SPACE,
        partition=0,
        members={ACCOUNT: Member(b"", b"", role, ((1, role),))},
        epochs=dict.fromkeys(range(1, epoch + 1)),
        epoch=Epoch(epoch),
        title=None,
        lease_hours=24,
        head_prefixes={},
        seq=1,
        head=b"",
    )


class Desk:
    """A sequencer and one device that pushes to it."""

    def __init__(self, **options):
        self.device = DeviceKeys.make(os.urandom)
        self.chain = Chain(SPACE, self.device)
        self.author = Author(ACCOUNT, self.device.device, self.device.sign_pk)
        self.sequencer = Sequencer(SPACE, rules(**options), {})

    def push(self, *envelopes):
        return self.sequencer.decide(envelopes, self.author)

    def code(self, *envelopes):
        """Return the code of the refusal."""
        refusal = self.push(*envelopes).refusal
        return refusal.error.code if refusal else None


def test_a_chain_is_taken_across_pushes_that_are_not_yet_durable():
    desk = Desk()

    first, second = desk.push(desk.chain.next(), desk.chain.next()), desk.push(desk.chain.next())

    assert [len(first.fresh), len(second.fresh)] == [2, 1]
    assert desk.sequencer.head_of(desk.device.device).counter == 0


def test_devices_write_side_by_side():
    desk, other = Desk(), DeviceKeys.make(os.urandom)
    author = Author(ACCOUNT, other.device, other.sign_pk)

    desk.push(desk.chain.next())
    decision = desk.sequencer.decide([Chain(SPACE, other).next()], author)

    assert len(decision.fresh) == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": b"x" * 16}, "foreign_envelope"),
        ({"space": b"x" * 16}, "foreign_envelope"),
        ({"kind": Kind.SIGNAL}, "role_forbids"),
        ({"kind": Kind.DROP}, "role_forbids"),
        ({"epoch": Epoch(2)}, "stale_epoch"),
        ({"epoch": Epoch(0)}, "stale_epoch"),
        ({"counter": 0}, "malformed_envelope"),
        ({"counter": 2}, "counter_gap"),
        ({"prev": b"x" * 32}, "prev_mismatch"),
        ({"ciphertext_bytes": 1}, "malformed_envelope"),
        # The order of checks: of two faults the earlier check speaks.
        ({"device": b"x" * 16, "epoch": Epoch(9), "counter": 7}, "foreign_envelope"),
        ({"kind": Kind.SIGNAL, "epoch": Epoch(9)}, "role_forbids"),
        ({"epoch": Epoch(9), "counter": 7}, "stale_epoch"),
        ({"counter": 7, "prev": b"x" * 32}, "counter_gap"),
    ],
)
def test_each_fault_has_its_own_code(changes, code):
    desk = Desk()

    assert desk.code(desk.chain.make(**{"counter": 1, "prev": bytes(32), **changes})) == code


@pytest.mark.parametrize(("size", "code"), [(ENVELOPE_BYTES_MAX, None), (ENVELOPE_BYTES_MAX + 1, "limit_exceeded")])
def test_an_envelope_is_taken_up_to_its_limit(size, code):
    desk = Desk()

    assert desk.code(desk.chain.next(size - 112 - 64)) == code


@pytest.mark.parametrize("data", [b"", b"x", bytes(191), b"\xff" * 300])
def test_rubbish_is_refused_and_harms_nothing(data):
    desk = Desk()

    assert desk.code(data) == "malformed_envelope"
    assert len(desk.push(desk.chain.next()).fresh) == 1


@pytest.mark.parametrize(
    ("role", "kind", "code"),
    [
        (Role.EDITOR, Kind.CHANGE, None),
        (Role.READER, Kind.CHANGE, "role_forbids"),
        (Role.SENDER, Kind.CHANGE, "role_forbids"),
        (Role.SENDER, Kind.DROP, None),
        (Role.EDITOR, Kind.DROP, "role_forbids"),
    ],
)
def test_roles_bound_what_is_written(role, kind, code):
    desk = Desk(role=role)

    assert desk.code(desk.chain.next(kind=kind)) == code


def test_drops_of_any_known_epoch_are_taken_but_changes_of_the_newest_only():
    sender, editor = Desk(role=Role.SENDER, epoch=3), Desk(role=Role.EDITOR, epoch=3)

    assert sender.code(sender.chain.next(kind=Kind.DROP, epoch=Epoch(1))) is None
    assert sender.code(sender.chain.next(kind=Kind.DROP, epoch=Epoch(4))) == "stale_epoch"
    assert editor.code(editor.chain.next(epoch=Epoch(2))) == "stale_epoch"


def test_a_device_that_heals_may_push_older_epochs_until_it_is_at_the_newest():
    desk = Desk(epoch=2)
    desk.sequencer.allow_healing(desk.device.device)

    assert desk.code(desk.chain.next(epoch=Epoch(1)), desk.chain.next(epoch=Epoch(2))) is None
    assert desk.code(desk.chain.next(epoch=Epoch(1))) == "stale_epoch"


def test_a_space_does_not_exist_for_a_stranger():
    desk = Desk()
    stranger = Author(b"z" * 16, desk.device.device, b"")

    assert desk.sequencer.decide([desk.chain.next()], stranger).refusal.error.code == "unknown_space"


def test_only_snapshots_have_their_signatures_verified():
    desk = Desk()
    forged_change, forged_snapshot = desk.chain.next(), desk.chain.next(kind=Kind.SNAPSHOT)

    assert desk.code(forged_change[:-64] + bytes(64)) is None
    assert desk.code(forged_snapshot[:-64] + bytes(64)) == "signature_refused"
    assert desk.code(forged_snapshot) is None


def test_a_repeat_is_known_and_another_envelope_of_that_counter_is_a_conflict():
    desk = Desk()
    envelope = desk.chain.next()
    desk.push(envelope)

    assert [len(desk.push(envelope).known), len(desk.push(envelope).fresh)] == [1, 0]
    assert desk.code(desk.chain.make(1, bytes(32))) == "counter_conflict"


def test_after_a_refusal_later_counters_fall_silently_until_that_counter_comes_again():
    desk = Desk()
    stale = desk.chain.make(1, bytes(32), epoch=Epoch(9))
    first, second, third = desk.chain.next(), desk.chain.next(), desk.chain.next()

    assert desk.code(stale, second) == "stale_epoch"
    pushed_behind = desk.push(second, third)
    assert (pushed_behind.fresh, pushed_behind.known, pushed_behind.refusal) == ([], [], None)
    assert len(desk.push(first, second).fresh) == 2


def test_an_attachment_ends_the_silence():
    desk = Desk()
    first, second = desk.chain.next(), desk.chain.next()
    assert desk.code(second) == "counter_gap"
    assert desk.code(second) is None

    desk.sequencer.forget_refusal(desk.device.device)

    assert desk.code(second) == "counter_gap"
    assert len(desk.push(first).fresh) == 1


def test_what_comes_before_the_fault_in_a_push_is_taken():
    desk = Desk()
    good, bad = desk.chain.next(), desk.chain.next(epoch=Epoch(9))

    decision = desk.push(good, bad, desk.chain.next())

    assert [envelope.data for envelope in decision.fresh] == [good]
    assert decision.refusal.counter == 2


def test_a_failed_append_takes_everything_in_flight_back():
    desk = Desk()
    first, second = desk.chain.next(), desk.chain.next()
    desk.push(first)
    desk.push(second)

    desk.sequencer.restore({desk.device.device: DeviceHead(1, parse(first).id)})

    assert len(desk.push(second).fresh) == 1


def test_pushes_of_a_held_account_come_again_and_those_of_others_pass():
    desk = Desk()
    first, second = desk.chain.next(), desk.chain.next()
    desk.sequencer.hold({ACCOUNT})

    assert desk.code(first) == "overloaded"
    assert desk.push(second) == Decision([], [], None)
    desk.sequencer.release()
    assert len(desk.push(first, second).fresh) == 2

    desk.sequencer.hold({b"b" * 16})
    assert len(desk.push(desk.chain.next()).fresh) == 1


def test_what_is_taken_is_under_way_until_it_is_durable_or_taken_back():
    desk = Desk()
    device, envelope = desk.device.device, desk.chain.next()
    desk.push(envelope)

    assert desk.sequencer.is_under_way([device])
    assert desk.sequencer.is_under_way(None)
    assert not desk.sequencer.is_under_way([b"d" * 16])
    desk.sequencer.confirm([parse(envelope)])
    assert not desk.sequencer.is_under_way(None)
    desk.push(desk.chain.next())
    desk.sequencer.restore({})
    assert not desk.sequencer.is_under_way([device])


def test_nobody_writes_to_a_space_that_was_shredded_or_after_leaving_it():
    desk = Desk()
    alive = desk.sequencer.rules

    desk.sequencer.rules = msgspec.structs.replace(alive, is_shredded=True)
    assert desk.code(desk.chain.make(1, bytes(32))) == "shredded"
    desk.sequencer.rules = msgspec.structs.replace(alive, members={}, former=alive.members)
    assert desk.code(desk.chain.make(1, bytes(32))) == "removed"
    applicant = Applicant(b"", b"", Role.EDITOR, b"")
    desk.sequencer.rules = msgspec.structs.replace(alive, members={}, applicants={ACCOUNT: applicant})
    assert desk.code(desk.chain.make(1, bytes(32))) == "approval_pending"


def lowered(desk: Desk, counter: int) -> SpaceLogState:
    """Return rules by which the account was lowered from admin to editor, its chain standing at a counter."""
    cutoff = Cutoff(2, {desk.device.device: Counter(counter)}, is_whole=True)
    member = Member(b"", b"", Role.EDITOR, ((1, Role.ADMIN), (2, Role.EDITOR)), (cutoff,))
    prefixes = {b"head-one": 1, b"head-two": 2}
    return msgspec.structs.replace(rules(), members={ACCOUNT: member}, head_prefixes=prefixes, seq=2)


@pytest.mark.parametrize(
    ("log_head", "code"), [(b"head-one", "stale_log_head"), (b"head-two", None), (b"unknown!", "stale_log_head")]
)
def test_above_a_cutoff_an_envelope_must_know_that_it_may_be_written(log_head, code):
    desk = Desk()
    desk.sequencer.rules = lowered(desk, 0)

    assert desk.code(desk.chain.make(counter=1, prev=bytes(32), log_head=log_head)) == code


def test_an_envelope_sealed_before_its_author_might_write_is_to_be_sealed_again():
    desk = Desk()
    member = Member(b"", b"", Role.EDITOR, ((1, Role.READER), (2, Role.EDITOR)))
    prefixes = {b"head-one": 1, b"head-two": 2}
    desk.sequencer.rules = msgspec.structs.replace(rules(), members={ACCOUNT: member}, head_prefixes=prefixes, seq=2)

    codes = [
        desk.code(desk.chain.make(counter=1, prev=bytes(32), log_head=head)) for head in (b"head-one", b"head-two")
    ]

    assert codes == ["stale_log_head", None]


def test_what_is_durable_is_acknowledged_again_after_its_epoch_has_ended():
    desk = Desk()
    first = desk.chain.next()
    desk.sequencer.confirm(desk.push(first).fresh)
    desk.sequencer.rules = rules(Role.READER, epoch=2)

    again, fresh = desk.push(first), desk.code(desk.chain.next())

    assert (len(again.known), again.refusal, fresh) == (1, None, "role_forbids")


def test_what_lies_below_a_cutoff_may_be_pushed_again():
    desk = Desk()
    first = desk.chain.next()
    desk.sequencer.confirm(desk.push(first).fresh)
    desk.sequencer.rules = lowered(desk, 1)

    decision = desk.push(first)

    assert (len(decision.known), decision.refusal) == (1, None)
