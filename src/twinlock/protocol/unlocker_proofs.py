"""What an account signs about its unlockers, so that no device alone can replace them. See spec/sealing.md, 2.2."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from twinlock.ids import AccountId
from twinlock.protocol.calls import Unlocker
from twinlock.protocol.device_calls import Parcel
from twinlock.protocol.labels import label, prefixed, u16, u32, u64


def unlocker_hash(unlocker: Unlocker) -> bytes:
    """Return the hash of every field of an unlocker, each in a form that has only one encoding."""
    names = prefixed(unlocker.kind.encode()) + prefixed(unlocker.kdf.encode())
    keys = prefixed(unlocker.auth_key) + prefixed(unlocker.wrapped)
    content = names + prefixed(unlocker.salt) + u32(unlocker.iterations) + keys
    return hashlib.sha256(label("unlocker", content)).digest()


def sign_up_message(server_id: bytes, account: AccountId, name: str, unlockers: Sequence[Unlocker]) -> bytes:
    """Return what an account signs for its first unlockers."""
    return label("sign-up", server_id + account + prefixed(name.encode()) + _hashes(unlockers))


def unlocker_put_message(
    server_id: bytes, account: AccountId, kem_pk: bytes, time_ms: int, unlocker: Unlocker
) -> bytes:
    """Return what an account signs to replace an unlocker: good at one server, for one `kem` key, and once."""
    return label("unlocker-put", server_id + account + kem_pk + u64(time_ms) + unlocker_hash(unlocker))


def rekem_message(
    server_id: bytes,
    account: AccountId,
    head: bytes,
    parcels: Sequence[Parcel],
    unlockers: Sequence[Unlocker],
    ends: Sequence[str],
) -> bytes:
    """Return what an account signs for all that comes with a new `kem` key; `head` is its log's after the entries."""
    sealed = b"".join(parcel.device + hashlib.sha256(parcel.sealed).digest() for parcel in parcels)
    kinds = u16(len(ends)) + b"".join(prefixed(kind.encode()) for kind in ends)
    content = server_id + account + head + u16(len(parcels)) + sealed + _hashes(unlockers) + kinds
    return label("rekem-request", content)


def _hashes(unlockers: Sequence[Unlocker]) -> bytes:
    return u16(len(unlockers)) + b"".join(map(unlocker_hash, unlockers))
