"""The outbox of a replica file: writes, frozen and kept envelopes, and what was refused."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twinlock.client.store_file import Row, StoreFile, within_bytes
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.replica.store import UNSEALED, DocumentKey, OwnEnvelope, PendingWrite, RefusedWrite

SCHEMA = """
CREATE TABLE IF NOT EXISTS writes(
    token INTEGER PRIMARY KEY, payload BLOB NOT NULL, keys BLOB NOT NULL, counter INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS unsealed_writes ON writes(token) WHERE counter = 0;
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


RECENT_MAX = 128
RECENT_BYTES_MAX = 8 << 10
"""An envelope is looked at again when it is sent, acknowledged and read back: the newest small ones stay in memory."""

TOKENS_RESERVED = 1_000
"""Tokens are reserved by the thousand, so that not every write has to note which was the last."""

Counts = tuple[int, int, int, int]


class OutboxTables:
    """What this device has written and the server has not confirmed, and what it keeps for healing."""

    __slots__ = (
        "_carried",
        "_file",
        "_frozen_max",
        "_next_token",
        "_recent",
        "_reserved",
        "_tokens",
        "frozen_count",
        "pending_count",
        "unsealed_count",
    )

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._recent: dict[Counter, OwnEnvelope] = {}
        self._carried: dict[Counter, list[PendingWrite]] = {}
        # Which writes an envelope carries is kept in memory, for the few that are frozen: no index to keep up.
        self._tokens: dict[Counter, list[int]] = {}
        self._frozen_max = Counter(0)
        self._next_token = self._reserved = 0
        self.pending_count = self.unsealed_count = self.frozen_count = 0
        self.recount()
        used = "SELECT max(token) AS token FROM writes UNION ALL SELECT max(token) FROM refused"
        (last,) = self._file.rows(f"SELECT coalesce(max(token), 0) FROM ({used})")[0]  # noqa: S608
        self._next_token = max(self._reserved, last) + 1

    def recount(self) -> None:
        """Count again, after opening or after a transaction that was taken back."""
        counts = "SELECT count(*), coalesce(sum(counter = ?), 0) FROM writes"
        pending_count, unsealed_count = self._file.rows(counts, (UNSEALED,))[0]
        (frozen_count,) = self._file.rows("SELECT count(*) FROM own_envelopes WHERE is_frozen")[0]
        (reserved,) = self._file.row("SELECT value FROM meta WHERE name = 'tokens'") or (b"",)
        self.take_back((pending_count, unsealed_count, frozen_count, int.from_bytes(reserved, "big")))

    def counts(self) -> Counts:
        """Return what `take_back` needs."""
        return (self.pending_count, self.unsealed_count, self.frozen_count, self._reserved)

    def take_back(self, counts: Counts) -> None:
        """Go on from earlier counts, after a part of a transaction was taken back."""
        self.pending_count, self.unsealed_count, self.frozen_count, self._reserved = counts
        self._forget_recent()

        self._tokens.clear()
        # Sealed writes come first, so the search ends with the last of them.
        sealed = "SELECT counter, token FROM writes WHERE counter != 0 ORDER BY token LIMIT ?"
        for counter, token in self._file.rows(sealed, (self.pending_count - self.unsealed_count,)):
            self._tokens.setdefault(Counter(counter), []).append(token)

    def _forget_recent(self) -> None:
        self._recent.clear()
        self._carried.clear()
        row = self._file.row("SELECT counter FROM own_envelopes WHERE is_frozen ORDER BY counter DESC LIMIT 1")
        self._frozen_max = Counter(0) if row is None else Counter(row[0])

    def add_write(self, payload: bytes, keys: Sequence[DocumentKey], counter: Counter) -> int:
        """Append a write and return its token."""
        token = self._take_token()
        self._file.run("INSERT INTO writes VALUES(?, ?, ?, ?)", (token, payload, _encoder.encode(keys), counter))
        for collection, identifier in dict.fromkeys(keys):
            self._file.run("INSERT INTO write_keys VALUES(?, ?, ?)", (collection, identifier, token))
        self.pending_count += 1
        if counter == UNSEALED:
            self.unsealed_count += 1
            return token
        self._tokens.setdefault(counter, []).append(token)
        if len(payload) <= RECENT_BYTES_MAX and counter not in self._recent:
            self._carried[counter] = [PendingWrite(token, payload, tuple(keys), counter)]
        return token

    def _take_token(self) -> int:
        token = self._next_token
        if token > self._reserved:
            self._reserved = token + TOKENS_RESERVED
            self._file.run("INSERT OR REPLACE INTO meta VALUES('tokens', ?)", (self._reserved.to_bytes(8, "big"),))
        self._next_token += 1
        return token

    def pending_ids(self, collection: str) -> set[str]:
        """Return the documents of a collection that pending writes touch."""
        if not self.pending_count:
            return set()
        rows = self._file.rows("SELECT DISTINCT id FROM write_keys WHERE collection = ?", (collection,))
        return {identifier for (identifier,) in rows}

    def put_write(self, token: int, payload: bytes) -> None:
        """Replace a write's payload."""
        self._file.run("UPDATE writes SET payload = ? WHERE token = ?", (payload, token))
        self._carried.clear()

    def unsealed_writes(self, bytes_max: int) -> list[PendingWrite]:
        """Return the first unsealed writes."""
        if not self.unsealed_count:
            return []
        rows = self._file.each(f"{_WRITE} WHERE counter = 0 ORDER BY token")
        return [_write(row) for row in within_bytes(rows, bytes_max, 1)]

    def writes_of(self, counter: Counter) -> list[PendingWrite]:
        """Return the writes that an envelope carries."""
        carried = self._carried.get(counter)
        if carried is not None:
            return carried
        found = (self._file.row(f"{_WRITE} WHERE token = ?", (token,)) for token in self._tokens.get(counter, ()))
        return [_write(row) for row in found if row is not None]

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
        if tokens:
            self._carried.pop(envelope.counter, None)
            self._tokens[envelope.counter] = sorted({*self._tokens.get(envelope.counter, ()), *tokens})
            self._file.run_many(
                "UPDATE writes SET counter = ? WHERE token = ?", [(envelope.counter, token) for token in tokens]
            )
        self.unsealed_count -= len(tokens)
        self.frozen_count += 1
        self._frozen_max = max(self._frozen_max, envelope.counter)
        self._note(envelope)

    def _note(self, envelope: OwnEnvelope) -> None:
        if len(envelope.data) <= RECENT_BYTES_MAX:
            self._recent[envelope.counter] = envelope
            if len(self._recent) > RECENT_MAX:
                oldest = next(iter(self._recent))
                del self._recent[oldest]
                self._carried.pop(oldest, None)

    def frozen_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return frozen envelopes above a counter."""
        if not self.frozen_count or after >= self._frozen_max:
            return []
        recent = self._recent_frozen(after, bytes_max)
        if recent:
            return recent
        rows = self._file.each(f"{_ENVELOPE} WHERE is_frozen AND counter > ? ORDER BY counter", (after,))
        return [_envelope(row) for row in within_bytes(rows, bytes_max, 3)]

    def _recent_frozen(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return frozen envelopes from memory; none if not all that follow are there."""
        found: list[OwnEnvelope] = []
        total = 0
        for counter in range(after + 1, self._frozen_max + 1):
            envelope = self._recent.get(Counter(counter))
            if envelope is None:
                return []
            if not envelope.seq:
                found.append(envelope)
                total += len(envelope.data)
                if total >= bytes_max:
                    break
        return found

    def confirm(self, counter: Counter, seq: Seq, now_ms: int) -> list[PendingWrite]:
        """Keep a frozen envelope for healing and drop its writes."""
        known = self._recent.get(counter)
        if known is not None and known.seq:
            return []
        self._file.run(
            "UPDATE own_envelopes SET is_frozen = 0, seq = ?, confirmed_ms = ? WHERE counter = ? AND is_frozen",
            (seq, now_ms, counter),
        )
        if not self._file.changed_rows():
            return []
        self.frozen_count -= 1
        if known is not None:
            self._recent[counter] = msgspec.structs.replace(known, seq=seq, confirmed_ms=now_ms)
        writes = self.writes_of(counter)
        self._carried.pop(counter, None)
        self._tokens.pop(counter, None)
        self._remove(writes)
        return writes

    def thaw(self, from_counter: Counter) -> int:
        """Drop frozen envelopes from a counter on; their writes are unsealed again."""
        self._file.run("DELETE FROM own_envelopes WHERE is_frozen AND counter >= ?", (from_counter,))
        dropped = self._file.changed_rows()
        for counter in [counter for counter in self._tokens if counter >= from_counter]:
            thawed = [(UNSEALED, token) for token in self._tokens.pop(counter)]
            self._file.run_many("UPDATE writes SET counter = ? WHERE token = ?", thawed)
            self.unsealed_count += len(thawed)
        self.frozen_count -= dropped
        self._forget_recent()
        return dropped

    def refuse(self, tokens: Sequence[int], code: str, detail: str) -> None:
        """Move writes to the refused ones."""
        for token in tokens:
            for row in self._file.rows(f"{_WRITE} WHERE token = ?", (token,)):
                self._file.run(
                    "INSERT OR REPLACE INTO refused VALUES(?, ?, ?, ?, ?)", (token, row[1], row[2], code, detail)
                )
                self.unsealed_count -= row[3] == UNSEALED
                self._remove([_write(row)])
        self._carried.clear()

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
        recent = self._recent.get(counter)
        if recent is not None:
            return recent
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
        self._forget_recent()
        return count

    def forget_kept(self, upto_seq: Seq, confirmed_before_ms: int) -> int:
        """Drop kept envelopes that are both low and old enough."""
        self._file.run(
            "DELETE FROM own_envelopes WHERE NOT is_frozen AND seq <= ? AND confirmed_ms < ?",
            (upto_seq, confirmed_before_ms),
        )
        self._recent.clear()
        return self._file.changed_rows()

    def _remove(self, writes: Sequence[PendingWrite]) -> None:
        for write in writes:
            self._file.run("DELETE FROM writes WHERE token = ?", (write.token,))
            for key in write.keys:
                self._file.run(
                    "DELETE FROM write_keys WHERE collection = ? AND id = ? AND token = ?", (*key, write.token)
                )
        self.pending_count -= len(writes)


def _write(row: Row) -> PendingWrite:
    token, payload, keys, counter = row
    return PendingWrite(token, payload, _keys_decoder.decode(keys), Counter(counter))


def _envelope(row: Row) -> OwnEnvelope:
    counter, identifier, kind, data, confirmed_ms, seq = row
    return OwnEnvelope(Counter(counter), EnvelopeId(identifier), kind, data, confirmed_ms, Seq(seq))
