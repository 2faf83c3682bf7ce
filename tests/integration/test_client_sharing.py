"""Sharing through the SDK: invites, joining, safety codes, roles, leaving."""

import pytest

import twinlock
from tests.client_kit import PASSWORD, ShiftedClock, until, values
from twinlock.errors import (
    ApprovalPendingError,
    InvalidCallError,
    InviteError,
    LastOwnerError,
    NotFoundError,
    RemovedError,
    RoleError,
    SafetyCodeError,
    SudoNeededError,
    UnknownSpaceError,
)
from twinlock.sealing.invites import parse_link

HOUR_MS = 3_600_000


@pytest.fixture
def world(account_world):
    return account_world


async def shared(world, role="editor", other="ben"):
    """Return ann's and another account's view of ann's space "home"."""
    ann, guest = await world.unlocked("a"), await world.unlocked(other)
    link = await ann.space("home").invite(role)
    return ann.space("home"), await guest.join(link)


async def seen(space, id):
    """Wait until a space shows a document."""
    found = []
    ended = space.collection("notes").doc(id).on_snapshot(lambda snap: found.append(snap.doc))
    await until(lambda: found and found[-1] is not None)
    ended()


def roles(members):
    return {member.name: str(member.role) for member in members}


async def test_a_link_admits_another_account_and_both_write(world):
    ann = await world.unlocked("a")
    home = ann.space("home")
    await home.collection("notes").doc("old").set({"text": "before"})
    link = await home.invite()
    ben = await world.unlocked("ben")

    joined = await ben.join(link)
    await seen(joined, "old")
    await joined.collection("notes").doc("new").set({"text": "by ben"})
    await seen(home, "new")

    assert link.startswith(world.url.replace("ws", "http") + "/#tl1.")
    assert joined.title == "home"
    assert roles(await home.members()) == roles(await joined.members()) == {"ann": "owner", "ben": "editor"}
    assert [(member.this, member.devices, member.verified) for member in await joined.members()] == [
        (False, 2, False),
        (True, 1, False),
    ]


async def test_a_name_leads_to_the_space_that_one_made_oneself_whatever_others_call_theirs(world):
    ann, ben = [await world.unlocked(profile) for profile in ("a", "ben")]
    bens_own = ben.space("home").id
    joined = await ben.join(await ann.space("home").invite())
    trip, other = await ann.create_space("trip"), await ann.create_space("other")
    for shared_space in (trip, other):
        await ben.join(await shared_space.invite())
    await other.rename("trip")
    await until(lambda: [info.title for info in ben.spaces()].count("trip") == 2)

    assert joined.title == "home"
    assert ben.space("home").id == bens_own
    assert ben.space(joined.id).id == joined.id
    with pytest.raises(UnknownSpaceError, match=f"2 are called 'trip', give an id: .*{trip.id}"):
        ben.space("trip")


async def test_joining_twice_is_fine_and_a_used_link_admits_nobody_else(world):
    ann, ben, cleo = [await world.unlocked(profile) for profile in ("a", "ben", "cleo")]
    link = await ann.space("home").invite()

    first = await ben.join(link)
    again = await ben.join(link)
    with pytest.raises(InviteError):
        await cleo.join(link)

    assert first.id == again.id
    assert ann.space("home").invites() == []
    assert sorted(info.title for info in cleo.spaces()) == ["home"]


async def test_a_space_joined_on_one_device_comes_to_the_others_of_the_account(world):
    ben = await world.unlocked("ben")
    second, ann = await world.device("b"), await world.unlocked("a")
    link = await ben.space("home").invite("reader")

    joined = await ann.join(link)

    await until(lambda: any(info.id == joined.id for info in second.spaces()))
    await until(lambda: second.space(joined.id).title == "home")


async def test_a_new_device_of_a_member_is_known_to_the_others_when_it_writes(world):
    home, joined = await shared(world)
    new = await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "c")
    world.open.append(new)

    await new.space(home.id).collection("notes").doc("x").set({"text": "by a new device"})

    await seen(joined, "x")
    assert [member.devices for member in await joined.members()] == [3, 1]
    assert world.open[1].quarantine == {}


async def test_joining_takes_the_password_and_a_link_that_was_not_altered(world):
    ann, ben = await world.unlocked("a"), await world.device("ben")
    link = await ann.space("home").invite()
    with pytest.raises(SudoNeededError):
        await ben.join(link)
    await ben.unlock(PASSWORD)
    for wrong in ("", "https://example.org/#x", link[:-2], link.replace("#tl1.", "#tl1.A"), link[:-1] + "!"):
        with pytest.raises(InviteError):
            await ben.join(wrong)

    assert (await ben.join(link.partition("#")[2])).title == "home"


async def test_an_invite_is_withdrawn_by_its_link_or_its_id(world):
    ann, ben = await world.unlocked("a"), await world.unlocked("ben")
    home = ann.space("home")
    one, two = await home.invite("reader", uses=3), await home.invite("editor", hours=1, approve=True)
    infos = home.invites()
    assert [(str(info.role), info.uses_left, info.needs_approval) for info in infos] == [
        ("reader", 3, False),
        ("editor", 1, True),
    ]

    await home.uninvite(one)
    await home.uninvite(infos[1].id)
    await home.uninvite(one)

    assert home.invites() == []
    for link in (one, two):
        with pytest.raises(InviteError):
            await ben.join(link)


async def test_an_expired_invite_admits_nobody_and_goes_when_the_next_is_made(world):
    clock = ShiftedClock()
    ann, ben = await world.unlocked("a", wall_ms=clock), await world.unlocked("ben")
    home = ann.space("home")
    link = await home.invite(hours=-1)

    with pytest.raises(InviteError):
        await ben.join(link)
    assert home.invites() == []
    await home.invite()

    assert len(home._runtime.keyring.log.invites) == 1


async def test_no_new_key_is_wrapped_to_an_invite_that_has_expired(world):
    ann = await world.unlocked("a")
    home = ann.space("home")
    await home.invite(hours=-1)
    kept = await home.invite(hours=1)
    await home.invite(hours=-1)
    await home.rotate()

    (name,) = home._runtime.keyring.log.invites
    assert parse_link(kept).invite == name


async def test_an_applicant_waits_until_an_admin_confirms_it_and_the_space_then_opens(world):
    ann, ben = await world.unlocked("a"), await world.unlocked("ben")
    home = ann.space("home")
    await home.collection("notes").doc("x").set({"text": "for members"})
    link = await home.invite("reader", approve=True)

    for _ in range(2):
        with pytest.raises(ApprovalPendingError):
            await ben.join(link)
    assert len(ben.spaces()) == 1
    (applicant,) = await home.applicants()
    assert (applicant.name, str(applicant.role)) == ("ben", "reader")
    await home.rotate()
    await home.approve(applicant.id)
    await home.approve("ben")

    await until(lambda: len(ben.spaces()) == 2)
    await until(lambda: ben.space(home.id).title == "home")
    await seen(ben.space(home.id), "x")
    assert await home.applicants() == []


async def test_an_applicant_that_is_turned_away_comes_in_by_no_old_link(world):
    ann, ben = await world.unlocked("a"), await world.unlocked("ben")
    home = ann.space("home")
    link = await home.invite("reader", uses=5, approve=True)
    with pytest.raises(ApprovalPendingError):
        await ben.join(link)

    await home.remove("ben")

    assert await home.applicants() == []
    with pytest.raises(InviteError):
        await ben.join(link)
    assert (await ben.join(await home.invite("reader"))).title == "home"


async def test_two_members_compare_their_safety_codes(world):
    home, joined = await shared(world)
    code = await joined.safety_code("ann")

    assert code == await home.safety_code("ben")
    assert len(code.split()) == 12
    wrong = ("1" if code[0] != "1" else "2") + code[1:]
    for bad in (wrong, code[:-1], "", "hello"):
        with pytest.raises(SafetyCodeError):
            await home.verify("ben", bad)
    await home.verify("ben", code.replace(" ", ""))
    await joined.verify((await joined.members())[0].id, code)

    assert [member.verified for member in await home.members()] == [False, True]


async def test_who_is_verified_is_remembered(world):
    home, joined = await shared(world)
    await home.verify("ben", await joined.safety_code("ann"))
    await world.open[0].close()

    ann = await world.device("a")

    assert [member.verified for member in await ann.space("home").members()] == [False, True]


async def test_a_reader_reads_and_its_writes_are_refused_until_it_may(world):
    home, joined = await shared(world, "reader")
    await home.collection("notes").doc("x").set({"n": 1})
    await seen(joined, "x")
    with pytest.raises(RoleError, match="a reader writes nothing"):
        await joined.collection("notes").doc("y").set({"n": 2})

    await home.set_role("ben", "editor")
    await until(lambda: joined._runtime.keyring.log.role_of(joined._runtime.keyring.account) == "editor")
    await (await joined.collection("notes").doc("z").set({"n": 3})).durable()

    await seen(home, "z")
    assert [value["n"] for value in values(await home.collection("notes").order_by("n").get())] == [1, 3]


async def test_a_lowered_member_writes_no_more_and_what_it_wrote_stays(world):
    home, joined = await shared(world)
    await (await joined.collection("notes").doc("x").set({"n": 1})).durable()
    await seen(home, "x")

    await home.set_role("ben", "reader")
    await home.set_role("ben", "reader")
    # At once if the device has heard of its role, else by the server.
    with pytest.raises(RoleError):
        await (await joined.collection("notes").doc("y").set({"n": 2})).durable()

    assert values(await home.collection("notes").get()) == [{"n": 1}]
    assert roles(await home.members())["ben"] == "reader"


async def test_roles_are_looked_at_before_anything_is_sent(world):
    home, joined = await shared(world)
    for change in (
        joined.invite(),
        joined.set_role("ann", "reader"),
        joined.set_role("ben", "owner"),
        joined.remove("ann"),
        joined.rotate(),
        joined.shred(),
        joined.rename("mine"),
        joined.set_lease_hours(0),
        home.invite("admin"),
        home.remove("ann"),
    ):
        with pytest.raises(RoleError):
            await change
    for change in (home.invite("nobody"), home.set_role("ben", "nobody"), home.invite(uses=0)):
        with pytest.raises(InvalidCallError):
            await change
    for change in (home.leave(), home.set_role("ann", "admin")):
        with pytest.raises(LastOwnerError):
            await change
    with pytest.raises(NotFoundError):
        await home.set_role("nobody", "reader")


async def test_an_admin_invites_and_does_not_touch_owners(world):
    home, joined = await shared(world)
    await home.set_role("ben", "admin")
    await until(lambda: joined._runtime.keyring.log.role_of(joined._runtime.keyring.account) == "admin")
    cleo = await world.unlocked("cleo")

    third = await cleo.join(await joined.invite("reader"))

    assert roles(await third.members()) == {"ann": "owner", "ben": "admin", "cleo": "reader"}
    with pytest.raises(RoleError):
        await joined.remove("ann")
    await joined.remove("cleo")
    await until(lambda: third.id in [end.space for end in cleo.ended_spaces()])


async def test_a_member_that_leaves_keeps_nothing_and_the_space_is_rotated(world):
    home, joined = await shared(world)
    ben = world.open[1]
    await joined.collection("notes").doc("x").set({"n": 1})
    folder = world.folder / "ben" / "spaces" / joined.id
    assert (folder / "replica.db").exists()

    await joined.leave()
    await joined.leave()

    assert not folder.exists()
    assert [info.title for info in ben.spaces()] == ["home"]
    assert [(end.space, str(end.reason), end.unsent_writes) for end in ben.ended_spaces()] == [(joined.id, "left", 0)]
    for use in (joined.collection("notes").get(), joined.members()):
        with pytest.raises(RemovedError):
            await use
    with pytest.raises(RemovedError):
        ben.space(joined.id)
    await seen(home, "x")
    await until(lambda: home._runtime.keyring.log.epoch == 2)
    assert not home.rotation_wanted
    assert roles(await home.members()) == {"ann": "owner"}


async def test_who_left_may_come_back_by_a_new_link(world):
    home, joined = await shared(world)
    ben = world.open[1]
    await home.collection("notes").doc("x").set({"n": 1})
    await joined.leave()

    again = await ben.join(await home.invite())

    await seen(again, "x")
    assert ben.ended_spaces() == []
    assert ben.space(joined.id).title == "home"


async def test_a_space_changes_its_name_for_all(world):
    home, joined = await shared(world)

    await home.rename("family")

    await until(lambda: joined.title == home.title == "family")
    assert world.open[1].space("family").id == home.id
    with pytest.raises(UnknownSpaceError):
        world.open[0].space("home")
