"""Rules that a grown log brings: taken over by a served space, and told to whom they concern here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from twinlock.errors import RemovedError, ShreddedError
from twinlock.ids import AccountId
from twinlock.protocol.frames import LOG_GROWN, Notice
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.server.hub import Hub
from twinlock.server.served_space import ServedSpace


class Telling(msgspec.Struct, frozen=True, array_like=True):
    """Notices for every device of some accounts, attached or not."""

    accounts: list[AccountId]
    notices: list[Notice]


def install(hub: Hub, space: ServedSpace, after: SpaceLogState) -> list[Telling]:
    """Let new rules hold, and tell everybody on this node; all in this turn of the loop. Older rules change nothing.

    Returns what the accounts' devices on other nodes are to hear too.
    """
    before = space.sequencer.rules
    if after.seq <= before.seq:
        return []
    space.sequencer.rules = after
    gone = gone_between(before, after)
    for peer in (*space.live, *space.lagging, *space.senders):
        account = peer.session.account
        if account in gone or account not in after.members:
            hub.detach(space, peer)
            peer.session.detached(space.id)
            continue
        if after.members[account].role is Role.SENDER:
            hub.attach_sender(space, peer)
        peer.send(Notice(LOG_GROWN, space.id))
    tellings = _tellings(before, after, gone)
    tell(hub, tellings)
    return tellings


def tell(hub: Hub, tellings: Sequence[Telling]) -> None:
    """Tell the devices of this node."""
    for telling in tellings:
        hub.tell_accounts(frozenset(telling.accounts), *telling.notices)


def newcomers_between(before: SpaceLogState, after: SpaceLogState) -> frozenset[AccountId]:
    """Return those who came in, and applicants, also those that were let in now."""
    return frozenset(
        (after.members.keys() - before.members.keys()) | (after.applicants.keys() - before.applicants.keys())
    )


def gone_between(before: SpaceLogState, after: SpaceLogState) -> frozenset[AccountId]:
    """Return those for whom the space has come to its end."""
    if before.is_shredded:
        return frozenset()
    return _present(before) | _present(after) if after.is_shredded else _present(before) - _present(after)


def _tellings(before: SpaceLogState, after: SpaceLogState, gone: Collection[AccountId]) -> list[Telling]:
    grown, newcomers = Notice(LOG_GROWN, after.space), newcomers_between(before, after)
    tellings = [Telling(sorted(newcomers), [grown])] if newcomers else []
    if gone:
        # First of all they read the entry itself: a server's word alone ends nothing.
        code = ShreddedError.code if after.is_shredded else RemovedError.code
        tellings.append(Telling(sorted(gone), [grown, Notice(code, after.space)]))
    return tellings


def _present(rules: SpaceLogState) -> frozenset[AccountId]:
    return frozenset((*rules.members, *rules.applicants))
