"""What the two keys cost: a change sealed and signed, and opened again, beside the bare primitives."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.figure import Figure
from bench.people import Person, make_person
from bench.raw_client import now_ms
from bench.scale import PAYLOAD_BYTES, Scale
from twinlock.ids import NO_ENVELOPE, Counter, Epoch, Seq
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.envelope import HEADER_BYTES, NONCE_BYTES, Envelope, Kind
from twinlock.protocol.frames import Entry
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import ChainReader, EpochKeys, Sealer, ServiceKey, epoch_entry, make_epoch, space_genesis

PAGE_ENTRIES = 500
"""About what a page of 256-byte changes holds in a catch-up."""


async def seal_and_open(folder: Path, scale: Scale) -> list[Figure]:
    """Measure a change of 256 bytes: sealed and signed, opened alone, and opened in a long run of one device."""
    count = scale.count(20_000, 500)
    author = make_person()
    log, keys = _space(author)
    chain: list[Envelope] = []
    seal_us = _us_each(lambda: chain.extend(_chain(author, log, keys, count)), count)
    entries = [Entry(Seq(seq), now_ms(), envelope.data) for seq, envelope in enumerate(chain, 1)]
    alone_us = _us_each(lambda: _open_all(author, log, keys, entries, 1), count)
    run_us = _us_each(lambda: _open_all(author, log, keys, entries, PAGE_ENTRIES), count)
    bare_us = _us_each(lambda: _primitives(count), count)
    return [
        _figure("a change of 256 bytes sealed and signed", seal_us),
        _figure("the same verified and opened, when it comes alone", alone_us),
        _figure(f"the same in a run of {PAGE_ENTRIES} of one device, verified once", run_us),
        Figure("sealing", "one encryption and one signature, bare", bare_us, "µs", "lower", system="primitives"),
    ]


def _figure(name: str, value: float) -> Figure:
    return Figure("sealing", name, value, "µs", "lower")


def _us_each(work: Callable[[], None], count: int) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e6 / count


def _space(owner: Person) -> tuple[SpaceLogState, EpochKeys]:
    log = replay_space([space_genesis(owner.account, 0, os.urandom)])
    keys = make_epoch(log.space, Epoch(1), ServiceKey(os.urandom(32)), os.urandom)
    return replay_space([epoch_entry(owner.account, log, keys, None, os.urandom)], log), keys


def _chain(author: Person, log: SpaceLogState, keys: EpochKeys, count: int) -> list[Envelope]:
    sealer, payload, prev = Sealer(author.device, os.urandom), os.urandom(PAYLOAD_BYTES), NO_ENVELOPE
    chain: list[Envelope] = []
    for counter in range(1, count + 1):
        envelope = sealer.seal(Kind.CHANGE, payload, keys, Counter(counter), prev, log.head_prefix)
        prev = envelope.id
        chain.append(envelope)
    return chain


def _open_all(author: Person, log: SpaceLogState, keys: EpochKeys, entries: Sequence[Entry], page_entries: int) -> None:
    reader = ChainReader(log, [replay_account(author.entries)], {keys.epoch: keys}.get, _as_it_is, {})
    opened = 0
    for start in range(0, len(entries), page_entries):
        opened += len(reader.read(entries[start : start + page_entries]).opened)
    assert opened == len(entries)


def _as_it_is(payload: bytes, source: object) -> bytes:
    return payload


def _primitives(count: int) -> None:
    cipher, signer = AESGCM(os.urandom(32)), Ed25519PrivateKey.generate()
    payload, header = os.urandom(PAYLOAD_BYTES), os.urandom(HEADER_BYTES)
    for _ in range(count):
        cipher.encrypt(os.urandom(NONCE_BYTES), payload, header)
        signer.sign(header)
