"""The vectors of blobs. What is long stands as counted parts, and what is sealed of it as SHA-256."""

from __future__ import annotations

import hashlib

from tests.unit.sealing_world import Person, World, flipped
from tools.vector_notation import read_bytes
from tools.vectors_keys import Vector, vector
from twinlock.ids import BlobId, Epoch, SpaceId
from twinlock.protocol.limits import BLOB_CHUNK_BYTES
from twinlock.sealing.blobs import BlobLayout, BlobSealer
from twinlock.sealing.space_keys import EpochKeys

Case = dict[str, object]
Content = str | list[object]

_MIB = BLOB_CHUNK_BYTES
_LONG: Content = [[_MIB, "61"], [_MIB, "62"], "636465"]
_CONTENTS: dict[str, Content] = {
    "empty": "",
    "one byte": "61",
    "127 bytes": [[127, "61"]],
    "128 bytes": [[128, "61"]],
    "a chunk without one byte": [[_MIB - 1, "61"]],
    "a chunk": [[_MIB, "61"]],
    "a chunk and one byte": [[_MIB, "61"], "62"],
    "three chunks": _LONG,
    "a last chunk of padding only": [[33 * _MIB, "00"]],
    "a last chunk of zeros only": [[64 * _MIB, "00"], "61"],
}


def blobs() -> Vector:
    """Files as blobs, and chunks that must not open where they are put."""
    world = World(Person("vectors blob"))
    keys, blob = world.keys, BlobId(world.entropy(16))
    given = _given(keys, blob)
    accept = [_accepted(name, keys, blob, content) for name, content in _CONTENTS.items()]
    reject = [{**given, **case} for case in _reordered() + _strangers(keys, blob) + _altered(keys, blob)]
    return vector("blob", "sealing.md, section 5", accept, reject)


def seal(keys: EpochKeys, blob: BlobId, content: bytes) -> list[bytes]:
    """Return the chunks of a blob."""
    sealer = BlobSealer(keys, blob)
    return [*sealer.seal(content), *sealer.finish()]


def _given(keys: EpochKeys, blob: BlobId) -> Case:
    return {
        "space": keys.space.hex(),
        "epoch": keys.epoch,
        "member_key": keys.member_key.expose().hex(),
        "service_key": keys.service_key.expose().hex(),
        "blob": blob.hex(),
    }


def _accepted(name: str, keys: EpochKeys, blob: BlobId, content: Content) -> Case:
    plain = read_bytes(content)
    layout, chunks = BlobLayout(len(plain)), seal(keys, blob, plain)
    whole = b"".join(chunks)
    case: Case = {
        "name": name,
        **_given(keys, blob),
        "content": content,
        "blob_key": keys.blob_key(blob).hex(),
        "padded_bytes": layout.padded_bytes,
        "sealed_bytes": layout.sealed_bytes,
        "chunk_sha256": [hashlib.sha256(chunk).hexdigest() for chunk in chunks],
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    return {**case, "sealed": whole.hex()} if len(whole) < 300 else case


def _reordered() -> list[Case]:
    """Chunks of the blob "three chunks", told by their numbers, in an order that is not theirs."""
    orders = {
        "swapped chunks": [1, 0, 2],
        "a chunk twice": [0, 1, 1],
        "a chunk left out": [0, 2],
        "the last chunk left out": [0, 1],
        "a chunk too many": [0, 1, 2, 2],
        "no chunk at all": [],
    }
    size = len(read_bytes(_LONG))
    return [
        {"name": name, "content": _LONG, "size": size, "order": order, "error": "open_failed"}
        for name, order in orders.items()
    ]


def _strangers(keys: EpochKeys, blob: BlobId) -> list[Case]:
    """What was sealed as `sealed_as`, read as the blob given."""
    other_space = EpochKeys(SpaceId(bytes(16)), keys.epoch, keys.member_key, keys.service_key)
    other_epoch = EpochKeys(keys.space, Epoch(keys.epoch + 1), keys.member_key, keys.service_key)
    others = {
        "another blob's": _given(keys, BlobId(bytes(16))),
        "another space's": _given(other_space, blob),
        "another epoch's": _given(other_epoch, blob),
    }
    return [
        {"name": name, "content": "61", "size": 1, "order": [0], "sealed_as": other, "error": "open_failed"}
        for name, other in others.items()
    ]


def _altered(keys: EpochKeys, blob: BlobId) -> list[Case]:
    (whole,) = seal(keys, blob, b"a" * 128)
    bad = {
        "altered": flipped(whole, 0),
        "tag altered": flipped(whole, len(whole) - 1),
        "cut off": whole[:-1],
        "a byte too many": whole + b"\0",
        "empty": b"",
    }
    cases: list[Case] = [
        {"name": name, "size": 128, "sealed": data.hex(), "error": "open_failed"} for name, data in bad.items()
    ]
    cases += [
        {"name": f"told {size} bytes instead of 128", "size": size, "sealed": whole.hex(), "error": "open_failed"}
        for size in (127, 129, 143, 144, 1 << 20)
    ]
    return cases


MAKERS = {"blob": blobs}
