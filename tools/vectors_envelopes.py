"""The vectors of envelopes: single ones, chains of them as a reader judges them, and writes made while locked."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.unit.sealing_world import Person, SeededEntropy, World, entries, extend_chain, flipped
from tools import hpke_reference
from tools.vectors_keys import Vector, vector
from twinlock.ids import NO_ENVELOPE, Counter
from twinlock.protocol.envelope import (
    HEADER_BYTES,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    Envelope,
    Header,
    Kind,
    envelope_id,
    parse,
)
from twinlock.protocol.hpke import OVERHEAD_BYTES
from twinlock.protocol.labels import label, u32, u64
from twinlock.protocol.space_log import Role
from twinlock.sealing import Sealer, StoreKey
from twinlock.sealing.cipher import envelope_message
from twinlock.sealing.derive import store_mac
from twinlock.sealing.padding import pad

Case = dict[str, object]


def envelopes() -> Vector:
    """Single envelopes of every stored kind, and altered ones."""
    world = World(Person("vectors envelope"))
    sealer = Sealer(world.owner.device, world.entropy)
    head = world.log.head_prefix
    change = sealer.seal(Kind.CHANGE, b"a change", world.keys, Counter(1), NO_ENVELOPE, head)
    empty = sealer.seal(Kind.CHANGE, b"", world.keys, Counter(2), change.id, head)
    snapshot = sealer.seal(Kind.SNAPSHOT, b"s" * 1000, world.keys, Counter(3), empty.id, head)
    made = {"change": (change, b"a change"), "empty change": (empty, b""), "snapshot": (snapshot, b"s" * 1000)}
    made["drop"] = (_drop(world, Counter(4), snapshot, b"from a sensor"), b"from a sensor")
    given: Case = {
        "space": world.log.space.hex(),
        "member_key": world.keys.member_key.expose().hex(),
        "service_key": world.keys.service_key.expose().hex(),
        "sign_pk": world.owner.device.sign_pk.hex(),
    }
    accept = [
        {"name": name, **given, **_described(envelope), "payload": payload.hex()}
        for name, (envelope, payload) in made.items()
    ]
    reject: list[Case] = []
    for name, position in {
        "counter altered": 47,
        "predecessor altered": 64,
        "nonce altered": 96,
        "ciphertext altered": 112,
        "tag altered": 112 + 143,
    }.items():
        reject.append({"name": name, **given, "envelope": flipped(change.data, position).hex(), "error": "open_failed"})
    for name, data in {
        "too short": change.data[:191],
        "cut off": change.data[:-1],
        "a byte too many": change.data + b"\0",
        "version 2": b"\x02" + change.data[1:],
        "kind 0": b"\x01\x00" + change.data[2:],
        "flags": flipped(change.data, 3),
        "declared length": flipped(change.data, 111),
    }.items():
        reject.append({"name": name, **given, "envelope": data.hex(), "error": "malformed_envelope"})
    return vector("envelope", "sealing.md, section 5", accept, reject)


def chains() -> Vector:
    """Entries as they are delivered: what opens, what is quarantined and why, and where the chain stands then."""
    world = World(Person("vectors chain"))
    reading = Person("vectors chain reader")
    world.admit(reading, Role.READER)
    chain = world.chain(world.owner.device, 5)
    unsigned = [flipped(envelope.data, len(envelope.data) - 1) for envelope in chain]
    stranger = Person("vectors chain stranger")
    orders: dict[str, list[Envelope | bytes]] = {
        "in order": [*chain],
        "a gap that stays": [chain[0], chain[2], chain[3]],
        "a gap that is filled": [chain[0], chain[3], chain[1], chain[2]],
        "a replay": [chain[0], chain[1], chain[0]],
        "one signature vouches for the run": [*unsigned[:3], chain[3]],
        "forged from the third on": [*chain[:2], *unsigned[2:]],
        "a forged sibling": [chain[0], flipped(chain[1].data, 112), chain[1], chain[2]],
        "a new reader begins in the middle": [unsigned[1], *chain[3:]],
        "a stranger": [*world.chain(stranger.device, 1)],
        "a reader's change": [*world.chain(reading.device, 1)],
        "an unknown head of the log": [chain[0].data[:56] + bytes(8) + chain[0].data[64:]],
        "an unknown epoch": [flipped(chain[0].data, 7)],
        "another space": [flipped(chain[0].data, 8)],
        "a newer version": [b"\x02" + chain[0].data[1:]],
        "a signal": [chain[0].data[:1] + b"\x04" + chain[0].data[2:]],
        "no predecessor named": [chain[0], chain[1].data[:64] + bytes(32) + chain[1].data[96:]],
    }
    aead = _resigned(world, flipped(chain[0].data, HEADER_BYTES))
    orders["a signed envelope that does not open"] = extend_chain(world, world.owner.device, [aead], 1, "after")
    padding = _sealed_raw(world, b"x\x80".ljust(129, b"\0"))
    orders["other padding"] = extend_chain(world, world.owner.device, [padding], 1, "after")
    rising = Person("vectors chain rising")
    world.admit(rising, Role.READER)
    orders["written before the role was granted"] = [*world.chain(rising.device, 1)]
    world.admit(rising, Role.EDITOR)
    orders["written after the role was granted"] = [*world.chain(rising.device, 1)]
    given: Case = {
        "space_log": {
            "space": world.log.space.hex(),
            "head_prefixes": {prefix.hex(): seq for prefix, seq in world.log.head_prefixes.items()},
            "epochs": sorted(world.log.epochs),
        },
        "members": [_author(person, world) for person in (world.owner, reading, rising)],
        "member_key": world.keys.member_key.expose().hex(),
        "service_key": world.keys.service_key.expose().hex(),
    }
    cases: list[Case] = []
    for name, order in orders.items():
        page = world.reader().read(entries(order))
        cases.append(
            {
                "name": name,
                "entries": [entry.envelope.hex() for entry in entries(order)],
                "opened": [[opened.source.seq, opened.content.hex()] for opened in page.opened],
                "quarantined": [[kept.entry.seq, str(kept.reason)] for kept in page.quarantined],
                "heads": {device.hex(): [head.counter, head.id.hex()] for device, head in page.heads.items()},
            }
        )
    return {**vector("chain", "sealing.md, section 5", cases, []), "given": given}


def locked_writes() -> Vector:
    """Writes made while locked, as they lie in the side file."""
    world, entropy = World(Person("vectors locked")), SeededEntropy("vectors locked entropy")
    store_key, device, keys = StoreKey.make(entropy), world.owner.device.device, world.keys
    front = u32(keys.epoch) + u64(7)
    ephemeral = X25519PrivateKey.from_private_bytes(entropy(32))
    info = label("locked-write", keys.space + device + front)
    sealed = hpke_reference.seal(ephemeral, keys.drop_pk, pad(b"in the dark"), info)
    record = front + sealed + store_mac(store_key, "locked-write-mac", keys.space + device + front + sealed)
    case: Case = {
        "name": "write 7",
        "space": keys.space.hex(),
        "epoch": keys.epoch,
        "member_key": keys.member_key.expose().hex(),
        "service_key": keys.service_key.expose().hex(),
        "store_key": store_key.expose().hex(),
        "device": device.hex(),
        "number": 7,
        "payload": b"in the dark".hex(),
        "record": record.hex(),
    }
    refused = {"error": "open_failed"}
    reject: list[Case] = [
        {**case, "name": "altered number", "record": flipped(record, 11).hex(), **refused},
        {**case, "name": "altered ciphertext", "record": flipped(record, 60).hex(), **refused},
        {**case, "name": "made up without the store's key", "store_key": bytes(32).hex(), **refused},
        {**case, "name": "too short", "record": record[:90].hex(), **refused},
    ]
    return vector("locked_write", "sealing.md, section 7", [case], reject)


def _drop(world: World, counter: Counter, before: Envelope, payload: bytes) -> Envelope:
    padded, device = pad(payload), world.owner.device
    header = Header(
        Kind.DROP,
        world.log.epoch,
        world.log.space,
        device.device,
        counter,
        0,
        world.log.head_prefix,
        before.id,
        bytes(NONCE_BYTES),
        len(padded) + OVERHEAD_BYTES,
    )
    ephemeral = X25519PrivateKey.from_private_bytes(world.entropy(32))
    packed = header.pack()
    ciphertext = hpke_reference.seal(ephemeral, world.keys.drop_pk, padded, label("drop", packed))
    identifier = envelope_id(packed, ciphertext)
    return Envelope(header, identifier, packed + ciphertext + device.sign.sign(envelope_message(identifier)))


def _resigned(world: World, data: bytes) -> Envelope:
    """Sign altered bytes with the owner's true device key, as a broken device would."""
    identifier = envelope_id(data[:HEADER_BYTES], data[HEADER_BYTES:-SIGNATURE_BYTES])
    return parse(data[:-SIGNATURE_BYTES] + world.owner.device.sign.sign(envelope_message(identifier)))


def _sealed_raw(world: World, padded: bytes) -> Envelope:
    """Seal and sign bytes that are not padded as they should be."""
    device, head = world.owner.device, world.log.head_prefix
    template = Sealer(device, world.entropy).seal(Kind.CHANGE, b"", world.keys, Counter(1), NO_ENVELOPE, head)
    header = template.header_bytes[:-4] + u32(len(padded) + TAG_BYTES)
    ciphertext = world.keys.device_cipher(device.device).encrypt(template.header.nonce, padded, header)
    return _resigned(world, header + ciphertext + bytes(SIGNATURE_BYTES))


def _described(envelope: Envelope) -> Case:
    header = envelope.header
    return {
        "kind": int(header.kind),
        "epoch": header.epoch,
        "device": header.device.hex(),
        "counter": header.counter,
        "log_head": header.log_head.hex(),
        "prev": header.prev.hex(),
        "nonce": header.nonce.hex(),
        "id": envelope.id.hex(),
        "envelope": envelope.data.hex(),
    }


def _author(person: Person, world: World) -> Case:
    member = world.log.members[person.keys.account]
    return {
        "account": person.keys.account.hex(),
        "roles": [[seq, str(role)] for seq, role in member.granted],
        "devices": {device.hex(): record.sign_pk.hex() for device, record in person.state.devices.items()},
    }


MAKERS = {"envelope": envelopes, "chain": chains, "locked_write": locked_writes}
