"""What a replica remembers of its place in the server's log and of its own chain, in two small records."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, EnvelopeId, Epoch, Incarnation, Seq
from twinlock.protocol.clock import Hlc
from twinlock.replica.store import ReplicaStore
from twinlock.replica.wear import Wear

_PLACE = "place"
_CHAIN = "chain"


class Place(msgspec.Struct, frozen=True):
    """Where this device stands in the server's log.

    Everything in [read_from, cursor] was read. `newest_of_epoch` tells the last entry sealed under each epoch.
    `expected` are the chain heads that were known when the server was restored to an older state: until these very
    envelopes have come back (`is_healing`), documents marked as lost may have to be posted again. `may_compact` ends
    for good once something of a newer version was met.
    """

    incarnation: Incarnation = Incarnation(b"")
    cursor: Seq = Seq(0)
    read_from: Seq = Seq(1)
    newest_of_epoch: Mapping[Epoch, Seq] = {}
    expected: Mapping[DeviceId, EnvelopeId] = {}
    is_healing: bool = False
    may_compact: bool = True


class OwnChain(msgspec.Struct, frozen=True):
    """The newest envelope this device has sealed, the newest stamp it has given or seen, and what its key has borne.

    No later stamp may lie below `floor`: the newest that this device has sealed, or read if it was not far ahead of its
    receive time. `received_ms` is the newest receive time that was read in the space.
    """

    counter: Counter = Counter(0)
    id: EnvelopeId = NO_ENVELOPE
    clock: Hlc = Hlc(0)
    wear: Wear = Wear()
    floor: Hlc = Hlc(0)
    received_ms: int = 0


_encoder = msgspec.msgpack.Encoder()
_place_decoder = msgspec.msgpack.Decoder(Place)
_chain_decoder = msgspec.msgpack.Decoder(OwnChain)


def load_place(store: ReplicaStore) -> Place:
    """Read the place; a new replica stands before everything."""
    data = store.get_meta(_PLACE)
    return Place() if data is None else _place_decoder.decode(data)


def save_place(store: ReplicaStore, place: Place) -> None:
    """Store the place, inside a transaction."""
    store.put_meta(_PLACE, _encoder.encode(place))


def load_chain(store: ReplicaStore) -> OwnChain:
    """Read the own chain's head."""
    data = store.get_meta(_CHAIN)
    return OwnChain() if data is None else _chain_decoder.decode(data)


def save_chain(store: ReplicaStore, chain: OwnChain) -> None:
    """Store the own chain's head, inside a transaction."""
    store.put_meta(_CHAIN, _encoder.encode(chain))
