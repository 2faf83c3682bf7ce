"""Which keyring rows go with a change, which are stored, and which are read."""

import pytest

from twinlock.engines.memory import MemoryDirectory
from twinlock.errors import InvalidCallError, LimitExceededError
from twinlock.ids import Epoch, SpaceId
from twinlock.protocol.calls import KeyringRow
from twinlock.protocol.limits import KEYRING_ROWS_MAX
from twinlock.protocol.space_log import Invite, Member, Role, SpaceLogState
from twinlock.server.keyrings import WRAPPED_BYTES_MAX, Keyrings, check_rows, needing_rows

SPACE = SpaceId(b"s" * 16)
OWNER, EDITOR, SENDER, INVITE = b"o" * 16, b"e" * 16, b"n" * 16, b"i" * 16


def member(role, kem_pk=b"k"):
    return Member(b"", kem_pk, role, ((1, role),))


def rules(epoch=1, **changes):
    members = {OWNER: member(Role.OWNER), EDITOR: member(Role.EDITOR), SENDER: member(Role.SENDER)}
    invite = Invite(b"", b"k", Role.READER, 0, 1, False, 1, OWNER)
    fields = {"members": members, "invites": {INVITE: invite}, "epoch": Epoch(epoch), **changes}
    return SpaceLogState(space=SPACE, partition=0, head_prefixes={}, seq=1, head=b"", **fields)


def row(name, epoch=1, size=80):
    return KeyringRow(name, Epoch(epoch), bytes(size))


def test_a_new_epoch_needs_rows_for_all_who_read():
    assert needing_rows(rules(1), rules(2)) == {OWNER, EDITOR, INVITE}
    assert needing_rows(None, rules(1)) == {OWNER, EDITOR, INVITE}
    assert needing_rows(None, rules(0)) == set()


def test_between_epochs_rows_are_for_those_who_begin_to_read_and_for_new_keys():
    before = rules()
    raised = {**before.members, SENDER: member(Role.READER)}
    renewed = {**before.members, EDITOR: member(Role.EDITOR, b"other")}

    assert needing_rows(before, rules(members=raised)) == {SENDER}
    assert needing_rows(before, rules(members=renewed)) == {EDITOR}
    assert needing_rows(rules(invites={}), before) == {INVITE}
    assert needing_rows(before, rules(invites={})) == set()


@pytest.mark.parametrize(
    ("found", "is_right"),
    [
        (row(EDITOR), True),
        (row(INVITE), True),
        (row(SENDER), False),
        (row(b"x" * 16), False),
        (row(EDITOR, epoch=2), False),
        (row(EDITOR, size=WRAPPED_BYTES_MAX), True),
        (row(EDITOR, size=WRAPPED_BYTES_MAX + 1), False),
        (row(EDITOR, size=0), False),
    ],
)
def test_a_row_is_of_the_newest_epoch_and_for_somebody_who_reads(found, is_right):
    if is_right:
        check_rows([found], rules())
        return
    with pytest.raises(InvalidCallError):
        check_rows([found], rules())


def test_rows_are_taken_up_to_their_limit():
    check_rows([row(EDITOR)] * KEYRING_ROWS_MAX, rules())

    with pytest.raises(LimitExceededError):
        check_rows([row(EDITOR)] * (KEYRING_ROWS_MAX + 1), rules())


async def test_the_newest_row_up_to_the_logs_epoch_is_read_and_older_ones_are_deleted():
    keyrings = Keyrings(MemoryDirectory())
    await keyrings.store(SPACE, [row(EDITOR, epoch) for epoch in (1, 2, 16, 17)])

    assert [(await keyrings.read(SPACE, EDITOR, epoch)).epoch for epoch in (1, 3, 16, 20)] == [1, 2, 16, 17]
    await keyrings.store(SPACE, [row(OWNER, 16), row(SENDER, 16)])
    await keyrings.forget_past(SPACE, rules(16))
    # What a try left for somebody who is no key holder goes as well, what is to come stays.
    assert await keyrings.read(SPACE, SENDER, Epoch(16)) is None
    assert (await keyrings.read(SPACE, OWNER, Epoch(16))).epoch == 16
    assert await keyrings.read(SPACE, EDITOR, Epoch(15)) is None
    await keyrings.forget(SPACE, Epoch(17), [EDITOR, OWNER])
    assert (await keyrings.read(SPACE, EDITOR, Epoch(17))).epoch == 16
    await keyrings.forget_all(SPACE)
    assert await keyrings.read(SPACE, EDITOR, Epoch(17)) is None
