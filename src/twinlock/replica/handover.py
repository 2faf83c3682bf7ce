"""What becomes of unsent writes when an account's role changes between sending and reading. Sans-I/O.

A sender that may now write as a member opens its drops and writes them anew as changes; one that only reads still
sends them as they are. A member that may now only send seals what it may as drops. Stamps stay, so that a write which
the server had all the same counts once. See docs/internals/sender.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.document.operations import decode_change
from twinlock.errors import OpenError
from twinlock.ids import Counter, EnvelopeId
from twinlock.protocol.envelope import parse
from twinlock.replica.keyring import Keyring
from twinlock.replica.outbox import Outbox
from twinlock.replica.state import load_chain
from twinlock.replica.store import PendingWrite, ReplicaStore
from twinlock.sealing.cipher import Sealer, open_payload

_ALL_BYTES = 1 << 62


def open_drop(data: bytes, keyring: Keyring) -> bytes:
    """Return the payload of a drop of this device, now that it holds the keys.

    Raises:
        OpenError: the keys of its epoch are not here, or it was altered.
    """
    envelope = parse(data)
    keys = keyring.keys(envelope.header.epoch)
    if keys is None:
        raise OpenError
    payload = open_payload(envelope, keys)
    decode_change(payload)
    return payload


def write_changes(store: ReplicaStore, keyring: Keyring, sealer: Sealer, payloads: Sequence[bytes]) -> list[int]:
    """Make pending writes of changes, durably, before a replica is opened on the store; return their tokens."""
    outbox = Outbox(store, keyring, sealer)
    return [outbox.write_change(payload) for payload in payloads]


def pending_writes(store: ReplicaStore) -> list[PendingWrite]:
    """Return everything that the server has not confirmed, in order."""
    frozen = store.frozen_envelopes(Counter(0), _ALL_BYTES)
    sealed = [write for envelope in frozen for write in store.writes_of(envelope.counter)]
    return [*sealed, *store.unsealed_writes(_ALL_BYTES)]


def sent_head(store: ReplicaStore) -> tuple[Counter, EnvelopeId]:
    """Return the newest own envelope that the server has, as far as this device knows."""
    frozen = store.frozen_envelopes(Counter(0), 1)
    if frozen:
        return Counter(frozen[0].counter - 1), parse(frozen[0].data).header.prev
    chain = load_chain(store)
    return chain.counter, chain.id
