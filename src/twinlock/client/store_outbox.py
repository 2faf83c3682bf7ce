"""The outbox of a replica file: writes, frozen and kept envelopes, and what was refused."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twinlock.client.store_file import Row, StoreFile, within_bytes
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.replica.store import UNSEALED, DocumentKey, OwnEnvelope, PendingWrite, RefusedWrite

SCHEMA = """
CREATE TABLE IF NOT EXISTS writes(
    token INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL, keys BLOB NOT NULL, counter INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS writes_by_counter ON writes(counter, token);
CREATE TABLE IF NOT EXISTS write_keys(
    collection TEXT NOT NULL, id TEXT NOT NULL, token INTEGER NOT NULL,
    PRIMARY KEY(collection, id, token)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused(
    token INTEGER PRIMARY KEY, payload BLOB NOT NULL, keys BLOB NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS own_envelopes(
    counter INTEGER PRIMARY KEY, id BLOB NOT NULL, kind INTEGER NOT NULL, data BLOB NOT NULL,
    confirmed_ms INTEGER NOT NULL, seq INTEGER NOT NULL, is_frozen INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS frozen_envelopes ON own_envelopes(counter) WHERE is_frozen;
"""
_ENVELOPE = "SELECT counter, id, kind, data, confirmed_ms, seq FROM own_envelopes"
_WRITE = "SELECT token, payload, keys, counter FROM writes"
_encoder = msgspec.msgpack.Encoder()
_keys_decoder = msgspec.msgpack.Decoder(tuple[DocumentKey, ...])


class OutboxTables:
    """What this device has written and the server has not confirmed, and what it keeps for healing."""

    __slots__ = ("_file", "frozen_count", "pending_count")

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self.pending_count = 0
        self.frozen_count = 0
        self.recount()

    def recount(self) -> None:
        """Count again, after opening or after a transaction that was taken back."""
        (self.pending_count,) = self._file.rows("SELECT count(*) FROM writes")[0]
        (self.frozen_count,) = self._file.rows("SELECT count(*) FROM own_envelopes WHERE is_frozen")[0]

    def add_write(self, payload: bytes, keys: Sequence[DocumentKey]) -> int:
        """Append an unsealed write and return its token."""
        self._file.run(
            "INSERT INTO writes(payload, keys, counter) VALUES(?, ?, ?)", (payload, _encoder.encode(keys), UNSEALED)
        )
        token = self._file.inserted_row()
        self._file.run_many("INSERT OR IGNORE INTO write_keys VALUES(?, ?, ?)", [(*key, token) for key in keys])
        self.pending_count += 1
        return token

    def put_write(self, token: int, payload: bytes) -> None:
        """Replace a write's payload."""
        self._file.run("UPDATE writes SET payload = ? WHERE token = ?", (payload, token))

    def unsealed_writes(self, bytes_max: int) -> list[PendingWrite]:
        """Return the first unsealed writes."""
        rows = self._file.each(f"{_WRITE} WHERE counter = ? ORDER BY token", (UNSEALED,))
        return [_write(row) for row in within_bytes(rows, bytes_max, 1)]

    def writes_of(self, counter: Counter) -> list[PendingWrite]:
        """Return the writes that an envelope carries."""
        return [_write(row) for row in self._file.rows(f"{_WRITE} WHERE counter = ? ORDER BY token", (counter,))]

    def writes_touching(self, key: DocumentKey) -> list[PendingWrite]:
        """Return the pending writes that touch a document."""
        wanted = "SELECT token FROM write_keys WHERE collection = ? AND id = ?"
        return [_write(row) for row in self._file.rows(f"{_WRITE} WHERE token IN ({wanted}) ORDER BY token", key)]

    def freeze(self, envelope: OwnEnvelope, tokens: Sequence[int]) -> None:
        """Store a frozen envelope and bind its writes to it."""
        self._file.run(
            "INSERT OR REPLACE INTO own_envelopes VALUES(?, ?, ?, ?, ?, ?, 1)",
            (envelope.counter, envelope.id, envelope.kind, envelope.data, envelope.confirmed_ms, envelope.seq),
        )
        self._file.run_many(
            "UPDATE writes SET counter = ? WHERE token = ?", [(envelope.counter, token) for token in tokens]
        )
        self.frozen_count += 1

    def frozen_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return frozen envelopes above a counter."""
        rows = self._file.each(f"{_ENVELOPE} WHERE is_frozen AND counter > ? ORDER BY counter", (after,))
        return [_envelope(row) for row in within_bytes(rows, bytes_max, 3)]

    def confirm(self, counter: Counter, seq: Seq, now_ms: int) -> list[PendingWrite]:
        """Keep a frozen envelope for healing and drop its writes."""
        self._file.run(
            "UPDATE own_envelopes SET is_frozen = 0, seq = ?, confirmed_ms = ? WHERE counter = ? AND is_frozen",
            (seq, now_ms, counter),
        )
        if not self._file.changed_rows():
            return []
        self.frozen_count -= 1
        writes = self.writes_of(counter)
        self._remove(writes)
        return writes

    def thaw(self, from_counter: Counter) -> int:
        """Drop frozen envelopes from a counter on; their writes are unsealed again."""
        self._file.run("DELETE FROM own_envelopes WHERE is_frozen AND counter >= ?", (from_counter,))
        dropped = self._file.changed_rows()
        self._file.run("UPDATE writes SET counter = ? WHERE counter >= ?", (UNSEALED, from_counter))
        self.frozen_count -= dropped
        return dropped

    def refuse(self, tokens: Sequence[int], code: str, detail: str) -> None:
        """Move writes to the refused ones."""
        for token in tokens:
            for row in self._file.rows(f"{_WRITE} WHERE token = ?", (token,)):
                self._file.run(
                    "INSERT OR REPLACE INTO refused VALUES(?, ?, ?, ?, ?)", (token, row[1], row[2], code, detail)
                )
                self._remove([_write(row)])

    def refused_writes(self) -> list[RefusedWrite]:
        """Return the refused writes in order."""
        rows = self._file.rows("SELECT token, payload, keys, code, detail FROM refused ORDER BY token")
        return [
            RefusedWrite(token, payload, _keys_decoder.decode(keys), code, detail)
            for token, payload, keys, code, detail in rows
        ]

    def forget_refused(self, tokens: Sequence[int]) -> None:
        """Drop refused writes."""
        self._file.run_many("DELETE FROM refused WHERE token = ?", [(token,) for token in tokens])

    def own_envelope(self, counter: Counter) -> OwnEnvelope | None:
        """Return an own envelope, frozen or kept."""
        row = self._file.row(f"{_ENVELOPE} WHERE counter = ?", (counter,))
        return None if row is None else _envelope(row)

    def kept_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return kept envelopes above a counter."""
        rows = self._file.each(f"{_ENVELOPE} WHERE NOT is_frozen AND counter > ? ORDER BY counter", (after,))
        return [_envelope(row) for row in within_bytes(rows, bytes_max, 3)]

    def refreeze(self, after: Counter) -> int:
        """Make kept envelopes above a counter frozen again; they carry no writes."""
        self._file.run("UPDATE own_envelopes SET is_frozen = 1, seq = 0 WHERE NOT is_frozen AND counter > ?", (after,))
        count = self._file.changed_rows()
        self.frozen_count += count
        return count

    def forget_kept(self, upto_seq: Seq, confirmed_before_ms: int) -> int:
        """Drop kept envelopes that are both low and old enough."""
        self._file.run(
            "DELETE FROM own_envelopes WHERE NOT is_frozen AND seq <= ? AND confirmed_ms < ?",
            (upto_seq, confirmed_before_ms),
        )
        return self._file.changed_rows()

    def _remove(self, writes: Sequence[PendingWrite]) -> None:
        self._file.run_many("DELETE FROM writes WHERE token = ?", [(write.token,) for write in writes])
        self._file.run_many(
            "DELETE FROM write_keys WHERE collection = ? AND id = ? AND token = ?",
            [(*key, write.token) for write in writes for key in write.keys],
        )
        self.pending_count -= len(writes)


def _write(row: Row) -> PendingWrite:
    token, payload, keys, counter = row
    return PendingWrite(token, payload, _keys_decoder.decode(keys), Counter(counter))


def _envelope(row: Row) -> OwnEnvelope:
    counter, identifier, kind, data, confirmed_ms, seq = row
    return OwnEnvelope(Counter(counter), EnvelopeId(identifier), kind, data, confirmed_ms, Seq(seq))
