"""The vectors of membership: logs in which members come and go, and chains that were cut off."""

from __future__ import annotations

import json

from tests.unit.membership_world import Membership, epoch_fields, invite_fields
from tests.unit.sealing_world import Person, SeededEntropy, entries
from tools.vectors_keys import Case, Vector, vector
from tools.vectors_logs import entry_cases
from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, Epoch
from twinlock.protocol import proofs
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.envelope import Envelope, Kind
from twinlock.protocol.signed_log import FieldValue, encode_body
from twinlock.protocol.space_log import NEEDS_KEYSTORE, Cutoff, Member, Role, SpaceLogState
from twinlock.sealing import Sealer, revoke_entry
from twinlock.sealing.identity import AccountKeys, sign_entry
from twinlock.sealing.invites import InviteKeys, join_entry, uninvite_entry
from twinlock.sealing.space_entries import config_offline_entry, shred_entry

# Membership logs


class _Household:
    """The members of the vectors' spaces, and the devices whose chains are cut off."""

    def __init__(self, seed: str) -> None:
        self.owner, self.admin, self.editor, self.reader, self.sender, self.guest, self.ghost = (
            Person(f"vectors {seed} {name}")
            for name in ("owner", "admin", "editor", "reader", "sender", "guest", "ghost")
        )
        self.space = Membership(self.owner, seed=f"vectors {seed}")

    def heads(self, person: Person, counter: int) -> dict[DeviceId, Counter]:
        return {person.device.device: Counter(counter)}


def membership() -> Vector:
    """Logs with entries of every type, and entries that break one rule each."""
    accept = [_case(name, space) for name, space in _spaces().items()]
    house = _Household("refused")
    space = house.space
    for person, role in ((house.admin, Role.ADMIN), (house.editor, Role.EDITOR), (house.reader, Role.READER)):
        space.admit(person, role)
    reject: list[Case] = []
    for make in (_bad_members, _bad_ends, _bad_invites):
        bad = make(house)
        for name, (entry, error) in bad.items():
            reject.append({"name": name, "entries": entry_cases([*space.entries, entry]), "error": error})
    shredded = [*space.entries, shred_entry(house.owner.keys, space.log)]
    after = Membership(house.owner, seed="vectors refused")
    for entry in shredded[2:]:
        after.grow(entry)
    last = after.raw(house.owner, "config", lease_hours=1)
    reject.append({"name": "an entry after a shred", "entries": entry_cases([*shredded, last]), "error": "log_invalid"})
    return vector("membership", "sealing.md, section 4", accept, reject)


def _spaces() -> dict[str, Membership]:
    family, ways, end = _family(), _ways_back(), _Household("end")
    end.space.admit(end.reader, Role.READER)
    end.space.grow(shred_entry(end.owner.keys, end.space.log))
    return {"members come and go": family, "the ways back are closed": ways, "a space is shredded": end.space}


def _family() -> Membership:
    house = _Household("family")
    space = house.space
    space.admit(house.admin, Role.ADMIN)
    invite = space.invite(Role.EDITOR, uses=2, by=house.admin)
    space.join(house.editor, invite)
    space.join(house.reader, space.invite(Role.READER, needs_approval=True))
    space.join(house.sender, space.invite(Role.SENDER))
    space.grow(space.member(house.reader, Role.READER, by=house.admin))
    space.grow(config_offline_entry(house.owner.keys, space.log, NEEDS_KEYSTORE))
    space.cut(house.editor, house.heads(house.editor, 3))
    house.editor.keys = AccountKeys(house.editor.keys.expose()[:32] + SeededEntropy("vectors new kem")(32))
    space.rekem(house.editor)
    space.lower(house.editor, Role.READER, house.heads(house.editor, 3), by=house.admin)
    space.remove(house.reader, {}, by=house.admin)
    space.leave(house.sender, house.heads(house.sender, 7))
    space.join(house.guest, space.invite(Role.READER, needs_approval=True))
    withdrawn = space.invite(Role.READER)
    space.grow(uninvite_entry(house.owner.keys, space.log, withdrawn.id))
    return space


def _ways_back() -> Membership:
    house = _Household("ways back")
    space = house.space
    space.admit(house.admin, Role.ADMIN)
    space.invite(Role.READER, uses=5, by=house.admin)
    shared, other = space.invite(Role.EDITOR, uses=5), space.invite(Role.EDITOR, uses=5)
    space.join(house.editor, shared)
    space.join(house.reader, other)
    space.leave(house.reader, house.heads(house.reader, 2))
    space.join(house.reader, other)
    space.remove(house.editor, house.heads(house.editor, 4))
    space.leave(house.admin)
    applied = space.invite(Role.READER, uses=2, needs_approval=True)
    space.join(house.admin, applied)
    space.remove(house.admin)
    space.join(house.editor, space.invite(Role.EDITOR))
    return space


def _case(name: str, space: Membership) -> Case:
    return {"name": name, "entries": entry_cases(space.entries), **described(space.log)}


def described(state: SpaceLogState) -> Case:
    """Return what a log says, as it stands in a vector."""
    return {
        "space": state.space.hex(),
        "members": {account.hex(): _member(member) for account, member in state.members.items()},
        "former": {account.hex(): _member(member) for account, member in state.former.items()},
        "applicants": {account.hex(): str(each.role) for account, each in state.applicants.items()},
        "invites": {
            name.hex(): [str(each.role), each.expires_ms, each.uses_left, int(each.needs_approval), each.by.hex()]
            for name, each in state.invites.items()
        },
        "key_holders": {name.hex(): kem_pk.hex() for name, kem_pk in state.key_holders.items()},
        "epoch": state.epoch,
        "lease_hours": state.lease_hours,
        "offline_needs": state.offline_needs,
        "wants_rotation": state.wants_rotation,
        "is_shredded": state.is_shredded,
        "seq": state.seq,
        "head": state.head.hex(),
    }


def _member(member: Member) -> Case:
    return {
        "kem_pk": member.kem_pk.hex(),
        "roles": [[seq, str(role) if role else None] for seq, role in member.granted],
        "cutoffs": [_cutoff(cutoff) for cutoff in member.cutoffs],
        "removed_seq": member.removed_seq,
        "barred_seq": member.barred_seq,
    }


def _cutoff(cutoff: Cutoff) -> Case:
    counters = {device.hex(): counter for device, counter in cutoff.counters.items()}
    return {"seq": cutoff.seq, "counters": counters, "is_whole": cutoff.is_whole}


_Bad = dict[str, tuple[SignedEntry, str]]


def _bad_members(house: _Household) -> _Bad:
    space, raw = house.space, house.space.raw
    editor, following = house.editor.keys, epoch_fields(space.log.epoch + 1)
    known: dict[str, FieldValue] = {"account": editor.account, "sign": editor.sign_pk, "kem": editor.kem_pk}
    gone: dict[str, FieldValue] = {"account": editor.account, "cutoff": {}}
    bad = {
        "an editor adds a member": raw(house.editor, "member", **known, role="editor"),
        "a lower role without a cutoff": raw(house.owner, "member", **known, role="reader"),
        "another key of a member": raw(
            house.owner, "member", **{**known, "kem": house.ghost.keys.kem_pk}, role="admin"
        ),
        "a kem key of small order": raw(house.reader, "rekem", kem=bytes(32)),
        "an admin removes an admin": raw(
            house.admin, "remove", account=house.admin.keys.account, cutoff={}, epoch=following
        ),
        "an account removes itself": raw(
            house.owner, "remove", account=house.owner.keys.account, cutoff={}, epoch=following
        ),
        "a removal without an epoch": raw(house.owner, "remove", **gone),
        "a removal that skips an epoch": raw(house.owner, "remove", **gone, epoch={**following, "n": 3}),
        "a removal without a link": raw(house.owner, "remove", **gone, epoch={**following, "link": b""}),
        "a removal of a stranger": raw(
            house.owner, "remove", account=house.ghost.keys.account, cutoff={}, epoch=following
        ),
        "an editor removes a reader": raw(
            house.editor, "remove", account=house.reader.keys.account, cutoff={}, epoch=following
        ),
        "the last owner leaves": raw(house.owner, "leave", cutoff={}),
        "the last owner steps down": raw(
            house.owner,
            "member",
            account=house.owner.keys.account,
            sign=house.owner.keys.sign_pk,
            kem=house.owner.keys.kem_pk,
            role="admin",
            cutoff={},
        ),
        "a stranger leaves": raw(house.ghost, "leave", cutoff={}),
        "a second genesis": space.entries[0],
    }
    later = raw(house.owner, "remove", **gone, epoch={**following, "later": 1})
    return {
        **{name: (entry, "log_invalid") for name, entry in bad.items()},
        "an unknown field in a removal's epoch": (later, "update_needed"),
        "a cutoff of a role that is not lower": (
            raw(house.owner, "member", **known, role="admin", cutoff={}),
            "update_needed",
        ),
    }


def _bad_invites(house: _Household) -> _Bad:
    space, raw = house.space, house.space.raw
    opened = space.invite(Role.READER, uses=2)
    space.join(house.guest, opened)
    older = space.invite(Role.READER, uses=2)
    removed = Person("vectors refused removed")
    space.admit(removed, Role.READER)
    space.remove(removed)
    fresh, ghost = InviteKeys(SeededEntropy("vectors invite")(64)), house.ghost.keys
    seen = json.loads(next(entry.body for entry in reversed(space.entries) if b'"type":"join"' in entry.body))
    joining: dict[str, FieldValue] = {"invite": older.id, "sign": ghost.sign_pk, "kem": ghost.kem_pk}
    owned = proofs.join_message(space.log.space, older.id, ghost.account, ghost.sign_pk, ghost.kem_pk)
    bad = {
        "an invite of an admin": raw(house.owner, "invite", **invite_fields(fresh, role="admin")),
        "an invite that nobody may use": raw(house.owner, "invite", **invite_fields(fresh, uses=0)),
        "an invite under another id": raw(house.owner, "invite", **invite_fields(fresh, id=bytes(16))),
        "an invite that is open already": raw(house.owner, "invite", **invite_fields(older)),
        "a reader invites": raw(house.reader, "invite", **invite_fields(fresh)),
        "an invite is withdrawn twice": uninvite_entry(house.owner.keys, space.log, fresh.id),
        "a join by no invite": join_entry(ghost, space.log, fresh),
        "a join signed by the joiner alone": raw(house.ghost, "join", **joining, isig=ghost.sign.sign(owned)),
        "a join signed by the owner": raw(house.ghost, "join", **joining, isig=house.owner.keys.sign.sign(owned)),
        "another's signature of the invite": raw(house.ghost, "join", **joining, isig=seen["isig"]),
        "a member joins": join_entry(house.reader.keys, space.log, older),
        "a removed account joins by an older invite": join_entry(removed.keys, space.log, older),
    }
    return {name: (entry, "log_invalid") for name, entry in bad.items()}


def _bad_ends(house: _Household) -> _Bad:
    space, raw = house.space, house.space.raw
    device = house.owner.device.device
    in_the_owner_s_name = encode_body("shred", {"by": house.owner.keys.account})
    forged = sign_entry(house.ghost.keys, space.log.space, space.log.position, in_the_owner_s_name)
    bad = {
        "an admin shreds": raw(house.admin, "shred"),
        "an admin cuts off an owner's device": raw(
            house.admin, "cutoff", account=house.owner.keys.account, counters={device: 1}
        ),
        "a reader cuts off an editor's device": raw(
            house.reader, "cutoff", account=house.editor.keys.account, counters={device: 1}
        ),
        "a cutoff of a stranger": raw(house.owner, "cutoff", account=house.ghost.keys.account, counters={device: 1}),
        "a counter of more than 53 bits": raw(
            house.owner, "cutoff", account=house.owner.keys.account, counters={device: 1 << 53}
        ),
        "a cutoff of no device": raw(house.owner, "cutoff", account=house.owner.keys.account, counters={bytes(15): 1}),
    }
    return {
        **{name: (entry, "log_invalid") for name, entry in bad.items()},
        "a demand on stores of a newer version": (raw(house.owner, "config", offline_needs="later"), "update_needed"),
        "a shred signed by a stranger": (forged, "signature_refused"),
    }


# Cutoffs


class _Chain:
    """A device that seals whatever it likes, naming any head of the log."""

    def __init__(self, space: Membership, person: Person, role: Role) -> None:
        self.space, self.person, self.made = space, person, list[Envelope]()
        space.admit(person, role)

    def write(self, log: SpaceLogState | None = None, *, keep: bool = True) -> Envelope:
        log, before = log or self.space.log, self.made
        sealer, counter = Sealer(self.person.device, self.space.entropy), Counter(len(before) + 1)
        prev, keys = before[-1].id if before else NO_ENVELOPE, self.space.epochs[Epoch(1)]
        payload = f"edit {counter} at {log.seq}".encode()
        envelope = sealer.seal(Kind.CHANGE, payload, keys, counter, prev, log.head_prefix)
        if keep:
            before.append(envelope)
        return envelope

    @property
    def heads(self) -> dict[DeviceId, Counter]:
        return {self.person.device.device: Counter(len(self.made))}


def cutoffs() -> Vector:
    """Entries of authors whose roles or devices ended, as every reader judges them."""
    space = Membership(Person("vectors cutoff owner"), seed="vectors cutoff")
    lowered, revoked, left, idle = (
        _Chain(space, Person(f"vectors cutoff {name}"), role)
        for name, role in (
            ("lowered", Role.EDITOR),
            ("revoked", Role.EDITOR),
            ("left", Role.ADMIN),
            ("idle", Role.EDITOR),
        )
    )
    early = space.log
    orders: dict[str, list[Envelope]] = {"written before anything ended": [lowered.write(), revoked.write()]}
    left.write()
    left.write()
    space.lower(lowered.person, Role.READER, lowered.heads)
    orders["above the cutoff, as a reader"] = [lowered.made[0], lowered.write(keep=False)]
    orders["back-dated to before the role was lowered"] = [lowered.made[0], lowered.write(early, keep=False)]
    between = space.log
    space.grow(space.member(lowered.person, Role.EDITOR))
    orders["granted again, and back-dated"] = [lowered.made[0], lowered.write(between, keep=False)]
    orders["granted again"] = [lowered.made[0], lowered.write()]
    _revoke(revoked.person)
    space.cut(revoked.person, revoked.heads)
    orders["a revoked device"] = [revoked.made[0], revoked.write(keep=False), revoked.write(early, keep=False)]
    space.grow(space.member(revoked.person, Role.ADMIN))
    orders["a revoked device, its account granted again"] = [revoked.made[0], revoked.write(keep=False)]
    space.leave(left.person, left.heads)
    orders["left"] = [*left.made, left.write(early, keep=False), left.write(keep=False)]
    space.leave(idle.person, {})
    orders["a device that had not written"] = [idle.write(early, keep=False)]
    given: Case = {
        "space_log": {
            "space": space.log.space.hex(),
            "head_prefixes": {prefix.hex(): seq for prefix, seq in space.log.head_prefixes.items()},
            "epochs": sorted(space.log.epochs),
        },
        "members": [_author(each.person, space) for each in (lowered, revoked, left, idle)],
        "member_key": space.epochs[Epoch(1)].member_key.expose().hex(),
        "service_key": space.epochs[Epoch(1)].service_key.expose().hex(),
    }
    cases: list[Case] = []
    for name, order in orders.items():
        page = space.reader().read(entries(order))
        cases.append(
            {
                "name": name,
                "entries": [entry.envelope.hex() for entry in entries(order)],
                "opened": [[opened.source.seq, opened.content.hex()] for opened in page.opened],
                "quarantined": [[kept.entry.seq, str(kept.reason)] for kept in page.quarantined],
                "heads": {device.hex(): [head.counter, head.id.hex()] for device, head in page.heads.items()},
            }
        )
    return {**vector("cutoff", "sealing.md, sections 4 and 5", cases, []), "given": given}


def _revoke(person: Person) -> None:
    person.state = replay_account([revoke_entry(person.keys, person.state, person.device.device)], person.state)


def _author(person: Person, space: Membership) -> Case:
    member = _member(space.record(person))
    certified = {**person.state.devices, **person.state.retired}
    return {
        "account": person.keys.account.hex(),
        "roles": member["roles"],
        "cutoffs": member["cutoffs"],
        "devices": {device.hex(): record.sign_pk.hex() for device, record in certified.items()},
        "revoked": sorted(device.hex() for device in person.state.revoked),
    }


MAKERS = {"membership": membership, "cutoff": cutoffs}
