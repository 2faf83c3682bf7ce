"""A removed member, who kept a copy of everything: with an honest server, and with one that gives whatever it has."""

import os

import msgspec
import pytest

from tests.client_kit import until
from tests.security.attackers import (
    FAMILY,
    SECRET,
    Between,
    Hand,
    chain_head,
    change,
    copied,
    delivered,
    log_that_says,
    plant,
    put,
    reasons,
    records,
    service_keys,
    signed_log,
    text_of,
    texts,
)
from tests.security.raid import stored, windows
from tests.security.wire import now_ms
from twinlock.errors import (
    InviteError,
    LogForkError,
    LogInvalidError,
    OpenError,
    RemovedError,
    RoleError,
    TwinlockError,
)
from twinlock.ids import Epoch
from twinlock.protocol.calls import AppendLog, KeyringRow, ReadKeyring, ReadLog, ReadLogResult, SignedEntry
from twinlock.protocol.envelope import Kind
from twinlock.protocol.frames import Attach, Reject
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    AccountKeys,
    EpochKeys,
    MemberKey,
    ServiceKey,
    member_entry,
    open_link,
    open_payload,
    unwrap_member_key,
)
from twinlock.sealing.invites import InviteKeys, join_entry, parse_link

WRAPPED_BYTES = 80
AFTER = "the new place of the key"


class Removal:
    """Ben's hand as it was, his whole folder, a link that he had noted; and then ann removed him."""

    def __init__(self, world, ann, hand, spare) -> None:
        self.world, self.ann, self.hand, self.spare = world, ann, hand, spare
        self.account_keys = AccountKeys((world.folder / "ben.keys").read_bytes())


@pytest.fixture
async def removal(household):
    ann, ben = await household.unlocked("a"), await household.unlocked("ben")
    spare = await ann.space(FAMILY).invite("editor", uses=9)
    assert await texts(ben) == {"shed": SECRET, "list": "milk"}
    await until(lambda: len(ben.space(FAMILY)._handle.runtime.keyring.log.invites) == 1)
    hand = Hand(ben)
    await ben.close()
    copied(household.folder / "ben", household.folder / "kept")
    await ann.space(FAMILY).remove("ben")
    await put(ann, "shed", AFTER)
    return Removal(household, ann, hand, spare)


async def test_a_removed_member_keeps_what_they_read_and_an_honest_server_gives_them_nothing_new(removal):
    world, hand = removal.world, removal.hand
    # What they had read they keep: the envelopes of their time open with what they hold.
    old = [each for each in delivered(world, hand.space) if each.header.epoch == 1]
    assert SECRET.encode() in b"".join(open_payload(each, hand.keys[Epoch(1)]) for each in old)

    # A client of their own making, which wipes nothing, asks for everything there is.
    async with hand.wire(world.url) as wire:
        with pytest.raises(RemovedError):
            await wire.call("space.keyring", ReadKeyring(hand.space), KeyringRow)
        told = await wire.call("space.log", ReadLog(hand.space), ReadLogResult)
        log = replay_space(told.entries)
        assert log.role_of(hand.account) is None, "they learn that they were removed, and nothing after it"
        assert log.seq == told.seq
        for epochs in ((1,), (2,), (1, 2)):
            with pytest.raises(TwinlockError):
                await wire.lease(hand.lease_request(*epochs))
        envelope = hand.seal(change("shed", "mine"), chain_head(world, hand.space, hand.device.device))
        refusal = await wire.push(hand.space, envelope.data)
        assert isinstance(refusal, Reject)
        assert refusal.code == "removed"
    async with hand.wire(world.url) as wire:
        await wire.send(Attach(hand.space, b"", 0))
        with pytest.raises(RemovedError):
            await wire.attach(hand.space)

    # Their copy of the folder with our client, their password at hand, and the link that they had noted.
    ben = await world.device("kept")
    ben._sudo.grant(removal.account_keys)
    with pytest.raises((InviteError, RemovedError)):
        await ben.join(removal.spare)
    assert await texts(removal.ann) == {"shed": AFTER, "list": "milk"}
    assert AFTER.encode() not in b"".join(stored(world.folder / "kept"))


async def test_a_removed_member_with_a_dishonest_server_gets_no_new_epoch(removal):
    """They join what both have: all keys of the member, all bytes of the server, and both service keys."""
    world, hand, ann = removal.world, removal.hand, removal.ann
    await ann.close()
    await world.stop()
    service, envelopes = service_keys(world, hand.space), delivered(world, hand.space)
    log = replay_space(signed_log(world, hand.space))

    # What they get: the epochs that they held, whatever the server adds to them.
    held = hand.keys[Epoch(1)]
    assert service[Epoch(1)] == held.service_key.expose()
    assert SECRET.encode() in b"".join(open_payload(each, held) for each in envelopes if each.header.epoch == 1)

    # What they do not get: A of the new epoch, by any way that leads to one.
    assert any(each.header.epoch == 2 for each in envelopes)
    with pytest.raises(OpenError):
        open_link(hand.space, Epoch(2), held.member_key, log.epochs[Epoch(2)].link)
    rows = records(world, f"keyring/{hand.space.hex()}/{2:08x}/")
    assert len(rows) == 3, "ann's, cleo's, and that of an open invite"
    for row in rows.values():
        for at in range(len(row) - WRAPPED_BYTES + 1):
            with pytest.raises(OpenError):
                unwrap_member_key(row[at : at + WRAPPED_BYTES], hand.kem, hand.space, Epoch(2), hand.account)
    loot = windows(stored(world.folder / "server") | stored(world.folder / "kept") | set(hand.secrets().values()))
    assert held.member_key.expose() in loot, "the control: the search finds the key that they did hold"
    b, commit = ServiceKey(service[Epoch(2)]), log.epochs[Epoch(2)].dk_commit
    assert len(loot) > 5_000
    assert not any(EpochKeys(hand.space, Epoch(2), MemberKey(key), b).dk_commit == commit for key in loot)


async def test_only_the_link_of_another_open_invite_would_lead_them_to_the_new_epoch(removal):
    """The control, and a limit that the threat model names: the new key is wrapped to invites that stay open."""
    world, hand = removal.world, removal.hand
    link = parse_link(removal.spare)
    kept = records(world, f"keyring/{hand.space.hex()}/{2:08x}/{link.invite.hex()}")
    row = msgspec.msgpack.decode(next(iter(kept.values())), type=KeyringRow)
    keys = InviteKeys.of(link.space, link.secret)

    newest = unwrap_member_key(row.wrapped, keys.kem, hand.space, Epoch(2), keys.id)
    await removal.ann.space(FAMILY).uninvite(removal.spare)
    await removal.ann.space(FAMILY).rotate()

    assert newest.expose() == removal.ann.space(FAMILY)._handle.runtime.keyring.member_key(Epoch(2)).expose()
    assert not records(world, f"keyring/{hand.space.hex()}/{3:08x}/{link.invite.hex()}")


async def test_back_dated_envelopes_of_a_removed_member_are_refused_by_every_reader(removal):
    """They sign what they might have written in time, under the old epoch; the server stores and delivers it."""
    world, hand, ann = removal.world, removal.hand, removal.ann
    await ann.close()
    await world.stop()
    head = chain_head(world, hand.space, hand.device.device)
    first = hand.seal(change("shed", "back-dated", now_ms() - 60_000), head)
    second = hand.seal(change("forged", "back-dated"), (first.header.counter, first.id))
    # One names the log's head as it was, one the present head, where they are no member any more.
    late = hand.seal(
        change("forged", "late"),
        (second.header.counter, second.id),
        log_head=replay_space(signed_log(world, hand.space)).head_prefix,
    )
    snapshot = hand.seal(change("forged", "packed"), (late.header.counter, late.id), kind=Kind.SNAPSHOT)
    plant(world, hand.space, *(each.data for each in (first, second, late, snapshot)))
    await world.restart()

    # Those who were there, the one who learns of the removal only now, and one that reads the space for the first time.
    for profile in ("a", "cleo", "b"):
        reader = await world.device(profile)
        await until(lambda reader=reader: any(info.title == FAMILY for info in reader.spaces()))
        assert await texts(reader) == {"shed": AFTER, "list": "milk"}, profile
        assert reasons(reader) == ["cutoff"] * 4, profile


async def test_what_was_planted_would_have_been_shown_while_they_were_a_member(household):
    """The control of the test above: the same hand, the same envelopes, no removal."""
    ben = await household.device("ben")
    await texts(ben)
    hand = Hand(ben)
    await ben.close()
    await household.stop()
    first = hand.seal(change("shed", "in time"), chain_head(household, hand.space, hand.device.device))
    plant(household, hand.space, first.data)
    await household.restart()

    cleo = await household.device("cleo")

    assert await texts(cleo) == {"shed": "in time", "list": "milk"}
    assert reasons(cleo) == []


async def test_nobody_can_bring_a_removed_member_back_but_an_owner_or_admin(removal):
    """A dishonest server shows the others entries that would make him a member again, signed by whoever helps it."""
    world, hand, ann = removal.world, removal.hand, removal.ann
    await texts(ann)
    runtime = ann.space(FAMILY)._handle.runtime
    log, entries = runtime.keyring.log, list(runtime.entries)
    await ann.close()
    keys, ghost = removal.account_keys, AccountKeys.make(os.urandom)
    link = parse_link(removal.spare)
    old_join = next(entry for entry in entries if b'"join"' in entry.body and text_of(hand.account) in entry.body)
    by_an_old_link = join_entry(keys, log, InviteKeys.of(link.space, link.secret))
    by_himself = member_entry(keys, log, keys.sign_pk, keys.kem_pk, keys.account, Role.OWNER)
    of_a_ghost = member_entry(ghost, log, keys.sign_pk, keys.kem_pk, keys.account, Role.EDITOR)
    true = member_entry(ghost, log, keys.sign_pk, keys.kem_pk, keys.account, Role.EDITOR)
    in_anns_name = SignedEntry(true.body.replace(text_of(ghost.account), text_of(runtime.keyring.account)), true.sig)

    for forged in (old_join, by_an_old_link, by_himself, of_a_ghost, in_anns_name):
        between = Between()
        log_that_says(between, hand.space, entries, [forged])
        ann = await world.device("a", dial=between.dial)
        with pytest.raises((LogForkError, LogInvalidError, RoleError)):
            await ann.space(FAMILY).members()
        assert hand.account not in ann.space(FAMILY)._handle.runtime.keyring.log.members
        await ann.close()

    # With the truth all is well again.
    ann = await world.device("a")
    assert await texts(ann) == {"shed": AFTER, "list": "milk"}
    assert ann.last_error is None


async def test_a_server_that_replays_the_old_log_is_left_by_whoever_has_seen_the_removal(removal):
    """The whole of server and key service as it was before: the old log, the old key, the old member."""
    world, hand, ann = removal.world, removal.hand, removal.ann
    await texts(ann)
    entries = list(ann.space(FAMILY)._handle.runtime.entries)
    await ann.close()
    before = next(at for at, entry in enumerate(entries) if b'"remove"' in entry.body)
    between = Between()
    log_that_says(between, hand.space, entries[:before], [])
    between.requests["space.append"] = lambda params: msgspec.msgpack.encode(
        AppendLog(hand.space, 0, [])
    )  # what the device gives back is thrown away

    ann = await world.device("a", dial=between.dial)
    await until(lambda: isinstance(ann.last_error, LogForkError))

    runtime = ann.space(FAMILY)._handle.runtime
    assert runtime.keyring.log.role_of(hand.account) is None
    assert runtime.keyring.log.epoch == 2
    await ann.space(FAMILY).collection("notes").doc("new").set({"text": "not for him"})
    assert runtime.keyring.newest_keys().epoch == 2, "what is written now is sealed under a key that he does not have"
