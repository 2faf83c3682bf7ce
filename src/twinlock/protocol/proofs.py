"""What is signed and what leases are bound to between device, server and key service. See spec/sealing.md, 6 and 7."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from twinlock.errors import SignatureError
from twinlock.ids import AccountId, DeviceId, Epoch, Incarnation, SpaceId
from twinlock.protocol.labels import label, prefixed, u16, u32, u64


def server_id_of(server_pk: bytes) -> bytes:
    """Return the 32 bytes by which a client pins a server."""
    return hashlib.sha256(server_pk).digest()


def hello_message(
    server_id: bytes,
    origin: str,
    incarnation: Incarnation,
    account: AccountId,
    device: DeviceId,
    server_nonce: bytes,
    client_nonce: bytes,
) -> bytes:
    """Return what a device signs to open a session: an answer for one server or origin is useless at another."""
    names = server_id + prefixed(origin.encode()) + incarnation + account + device
    return label("hello", names + prefixed(server_nonce) + prefixed(client_nonce))


def with_token(hello: bytes, token: str) -> bytes:
    """Return the `hello_message` of a hello that shows a token: without the device's key a stolen one opens nothing.

    Without a token the message stays as it is.
    """
    return hello + prefixed(hashlib.sha256(token.encode()).digest()) if token else hello


def welcome_message(
    server_id: bytes, incarnation: Incarnation, server_nonce: bytes, client_nonce: bytes, device: bytes
) -> bytes:
    """Return what the server signs to prove its key; `device` is empty in an anonymous session."""
    nonces = prefixed(server_nonce) + prefixed(client_nonce)
    return label("welcome", server_id + incarnation + nonces + prefixed(device))


def pairing_take_message(server_id: bytes, device: DeviceId) -> bytes:
    """Return what a new device signs to fetch the answer to its own request for approval."""
    return label("pairing-take", server_id + device)


def invite_open_message(server_id: bytes, space: SpaceId, invite: bytes, account: AccountId) -> bytes:
    """Return what an invite's key signs for the account that holds its secret, to read the space's log."""
    return label("invite-open", server_id + space + invite + account)


def join_message(space: SpaceId, invite: bytes, account: AccountId, sign_pk: bytes, kem_pk: bytes) -> bytes:
    """Return what an invite's key signs for the account that joins by it."""
    return label("join", space + invite + account + sign_pk + kem_pk)


def lease_message(
    space: SpaceId, epochs: Sequence[Epoch], nonce: bytes, time_ms: int, account: AccountId, device: DeviceId
) -> bytes:
    """Return what a device signs to ask for the service keys of some epochs."""
    wanted = u16(len(epochs)) + b"".join(u32(epoch) for epoch in epochs)
    return label("lease-request", space + wanted + prefixed(nonce) + u64(time_ms) + account + device)


def pending_message(
    space: SpaceId, epoch: Epoch, nonce: bytes, time_ms: int, account: AccountId, device: DeviceId
) -> bytes:
    """Return what a device signs to have the service key of a coming epoch made."""
    return label("pending-request", space + u32(epoch) + prefixed(nonce) + u64(time_ms) + account + device)


def lease_info(
    space: SpaceId, epoch: Epoch, device: DeviceId, not_after_ms: int, incarnation: Incarnation, nonce: bytes
) -> bytes:
    """Return the HPKE info of a lease: a changed time, space, epoch or nonce breaks it."""
    return label("lease", space + u32(epoch) + device + u64(not_after_ms) + incarnation + nonce)


def b_commit(space: SpaceId, epoch: Epoch, service_key: bytes) -> bytes:
    """Return the public commitment to a service key, which stands in the signed epoch entry."""
    return hashlib.sha256(label("b-commit") + space + u32(epoch) + service_key).digest()


def verify(sign_pk: bytes, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        SignatureError: it does not verify, or the key is no key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(sign_pk).verify(signature, message)
    except (InvalidSignature, ValueError) as exc:
        raise SignatureError from exc
