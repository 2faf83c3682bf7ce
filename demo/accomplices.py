"""Who helps the thief: whoever runs the server, and even whoever runs the key service, with all that they have."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from demo.thief import Loot
from twinlock.contracts.keys import Asking
from twinlock.errors import LeaseRefusedError, OpenError
from twinlock.ids import Epoch, Incarnation, SpaceId
from twinlock.keyservice.key_files import NODE_KEY_NAME, SERVICE_KEY_NAME, open_signing_key
from twinlock.keyservice.node_auth import LIFE_BYTES, NodeIdentity
from twinlock.keyservice.remote import RemoteKeyService
from twinlock.keyservice.service import DATABASE_NAME, wall_clock_ms
from twinlock.keyservice.wrapper import service_key_context
from twinlock.keyservice.wrapper_file import FileKeyWrapper
from twinlock.protocol.calls import KeyringRow, SignedEntry
from twinlock.protocol.frames import Lease
from twinlock.protocol.proofs import lease_message
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import EpochKeys, MemberKey, ServiceKey, unwrap_member_key

NONCE_BYTES = 32


class Helpers(NamedTuple):
    """The data folders of the server and of the key service, and where the latter is asked."""

    server: Path
    key_service: Path
    url: str


async def ask_for_lease(loot: Loot, space: SpaceId, helpers: Helpers) -> str:
    """Put the stolen device's own request before the key service, in the name of the server; return the refusal.

    An honest server would not even let the device in. Empty if a lease was given.
    """
    service_pk = open_signing_key(helpers.key_service / SERVICE_KEY_NAME).public_key().public_bytes_raw()
    node = NodeIdentity(open_signing_key(helpers.server / NODE_KEY_NAME), service_pk, os.urandom(LIFE_BYTES))
    keys = RemoteKeyService.connect(helpers.url, node, wall_clock_ms)
    device, epochs = loot.device, [Epoch(1)]
    nonce, now_ms = os.urandom(NONCE_BYTES), wall_clock_ms()
    signature = device.sign.sign(lease_message(space, epochs, nonce, now_ms, loot.account, device.device))
    asking = Asking(loot.account, device.device, Incarnation(os.urandom(16)), now_ms)
    try:
        await keys.lease(asking, Lease(space, epochs, nonce, now_ms, signature))
    except LeaseRefusedError as refusal:
        return refusal.detail or refusal.code
    finally:
        await keys.close()
    return ""


def newest_keys(loot: Loot, log: SpaceLogState, helpers: Helpers) -> int:
    """Look for the member key of a space's newest epoch in the loot; return in how many ways it was found.

    The key service helps with its true service key, and the server with the row that it keeps for the account.
    """
    service_key = ServiceKey(released_service_key(helpers.key_service, log.space, log.epoch))
    commit = log.epochs[log.epoch].dk_commit
    found = sum(
        EpochKeys(log.space, log.epoch, MemberKey(candidate), service_key).dk_commit == commit
        for candidate in loot.candidates
    )
    row = _row(helpers.server, log, loot)
    try:
        unwrap_member_key(row.wrapped, loot.account_kem, log.space, log.epoch, loot.account)
    except OpenError:
        return found
    return found + 1


def newest_log(helpers: Helpers, space: SpaceId) -> SpaceLogState:
    """Read a space's signed log out of the key service's database."""
    with _reading(helpers.key_service / DATABASE_NAME) as connection:
        rows = connection.execute("SELECT body, sig FROM entries WHERE log = ? ORDER BY seq", (space,)).fetchall()
    return replay_space(SignedEntry(body, sig) for body, sig in rows)


def released_service_key(key_service: Path, space: SpaceId, epoch: Epoch) -> bytes:
    """Do what the key service does: unwrap a service key by the root key that lies beside it."""
    with _reading(key_service / DATABASE_NAME) as connection:
        sql = "SELECT wrapped FROM keys WHERE space = ? AND epoch = ?"
        (wrapped,) = connection.execute(sql, (space, epoch)).fetchone()
        (identity,) = connection.execute("SELECT value FROM meta WHERE name = 'keyservice_id'").fetchone()
    wrapper = FileKeyWrapper.load(key_service / "root.key")
    return wrapper.unwrap(wrapped, service_key_context(space, epoch, identity))


def epochs_after(helpers: Helpers, seq: int) -> set[int]:
    """Return under which epochs the envelopes after a place were sealed, from the server's database."""
    with _reading(helpers.server / "twinlock.db") as connection:
        rows = connection.execute("SELECT envelope FROM log WHERE seq > ?", (seq,)).fetchall()
    # The epoch stands at a fixed place of the header. See spec/sealing.md, section 5.
    return {int.from_bytes(envelope[4:8], "big") for (envelope,) in rows}


def last_seq(helpers: Helpers) -> int:
    """Return the place of the newest envelope in the server's database."""
    with _reading(helpers.server / "twinlock.db") as connection:
        (seq,) = connection.execute("SELECT coalesce(max(seq), 0) FROM log").fetchone()
    return int(seq)


def _row(server: Path, log: SpaceLogState, loot: Loot) -> KeyringRow:
    key = f"keyring/{log.space.hex()}/{log.epoch:08x}/{loot.account.hex()}"
    with _reading(server / "twinlock.db") as connection:
        (value,) = connection.execute("SELECT value FROM records WHERE key = ?", (key,)).fetchone()
    return msgspec.msgpack.decode(value, type=KeyringRow)


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()
