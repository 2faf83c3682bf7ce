"""The directory contract on JetStream: one message a key in a few streams, guarded by the key's last number.

A key's revision is the number of its message in the stream. Reads that must be true are answered by the stream's
leader; replicas answer only where they prove how far they have got. The cluster's own record can be got, but is in no
list: it is not of what the cluster holds.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from twinlock.contracts.directory import Change, Directory, Record, check_record
from twinlock.engines.jetstream_api import (
    GUARD,
    PATIENCE_SECONDS,
    RETRY_AFTER_MS,
    RETRY_SECONDS,
    TRY_SECONDS,
    WRONG_LAST,
    Api,
    ApiError,
    PublishAnswer,
    StoredMessage,
)
from twinlock.engines.jetstream_format import (
    SETTINGS_KEY,
    Names,
    key_to_subject,
    prefix_to_filter,
    shard_of,
    shards_of_prefix,
    subject_to_key,
)
from twinlock.engines.jetstream_message import STATUS_TOO_MANY, Message
from twinlock.engines.jetstream_newest import Newest
from twinlock.engines.one_process import ChangeWatchers
from twinlock.errors import RevisionError, StoreError

NAMES_PAGE = 100_000
NAMES_OVERLAP = 1_000
VALUES_PAGE = 200
"""Keys read in one request."""

DELETED_SECONDS = 3_600
"""After how long nothing is left of a deleted key."""

MATCHES_MAX = 1_000
"""Above so many keys a list is read by their names; JetStream answers at most 1,024 at once."""

_OPERATION = "KV-Operation"
_DELETED = "DEL"


class JetstreamDirectory(Directory):
    """Keys spread over a fixed number of streams."""

    __slots__ = ("_api", "_names", "_newest", "_seen", "_shards", "_stop", "_watchers")

    def __init__(self, api: Api, names: Names, shards: int) -> None:
        self._api = api
        self._newest = Newest(api)
        self._names = names
        self._shards = shards
        self._watchers = ChangeWatchers()
        self._stop: Callable[[], None] | None = None
        self._seen: dict[int, int] = {}

    async def get(self, key: str) -> Record | None:
        """Return the newest record of a key, as the leader of its stream knows it."""
        return _record(await self._last(key))

    async def put(self, key: str, value: bytes, expect_revision: int | None = None) -> int:
        """Store durably and return the new revision."""
        check_record(key, value)
        return await self._write(key, value, expect_revision, "")

    async def delete(self, key: str, expect_revision: int | None = None) -> None:
        """Delete a key."""
        if not expect_revision:
            record = _record(await self._last(key))
            if record is None:
                return
            if expect_revision == 0:
                raise RevisionError(f"{key} is at revision {record.revision}, not 0")
        await self._write(key, b"", expect_revision, _DELETED)

    async def list(self, prefix: str) -> dict[str, Record]:
        """Return every key that begins with a prefix, sorted by key."""
        parts = await asyncio.gather(*(self._list(shard, prefix) for shard in shards_of_prefix(prefix, self._shards)))
        records = {key: record for part in parts for key, record in part.items()}
        return {key: records[key] for key in sorted(records)}

    async def scan(self) -> AsyncIterator[tuple[str, Record]]:
        """Yield every record, some at a time."""
        for shard in range(self._shards):
            async for names in self._names_of(shard, ">"):
                for first in range(0, len(names), VALUES_PAGE):
                    page = await self._values(shard, names[first : first + VALUES_PAGE])
                    for key, record in page.items():
                        if key != SETTINGS_KEY:
                            yield key, record

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield every later change of keys that begin with a prefix."""
        if self._stop is None:
            ends = [self._subscribe(shard) for shard in range(self._shards)]
            self._stop = partial(_call_all, ends)
            self._api.connection.on_gap(self._on_gap)
        return self._watchers.watch(prefix)

    def close(self) -> None:
        """End every watch."""
        if self._stop is not None:
            self._stop()
            self._stop = None
        self._watchers.close()

    # Writing.

    async def _write(self, key: str, value: bytes, expected: int | None, operation: str) -> int:
        """Store a message with a guard, and find out what came of it if nobody tells."""
        identifier = secrets.token_hex(8)
        guard = await self._guard_for_any(key) if expected is None else expected
        is_unknown = False
        ends = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            answer = await self._store(key, value, guard, identifier, operation)
            if answer is not None and answer.error is None:
                return answer.seq
            if answer is not None and answer.error is not None and answer.error.err_code not in WRONG_LAST:
                if not answer.error.passes:
                    raise ApiError(f"storing {key}", answer.error)
                answer = None
            if answer is None:
                self._api.connection.check_permitted(self._subject(key))
                is_unknown = True
                await asyncio.sleep(RETRY_SECONDS)
            last = await self._last(key)
            if last is not None and identifier.encode() in last.hdrs:
                return last.seq
            number = 0 if last is None else last.seq
            if number != guard:
                guard = self._next_guard(key, last, expected, is_unknown)
            if asyncio.get_running_loop().time() > ends:
                raise StoreError(f"the cluster does not store {key}", retry_after_ms=RETRY_AFTER_MS)

    def _next_guard(self, key: str, last: StoredMessage | None, expected: int | None, is_unknown: bool) -> int:
        """Return with which number to try again after somebody else wrote.

        Raises:
            RevisionError: it is not what was expected.
            StoreError: it may be that ours was stored, and then replaced by another.
        """
        number = 0 if last is None else last.seq
        if is_unknown:
            raise StoreError(f"what became of {key} is not known", retry_after_ms=RETRY_AFTER_MS)
        if expected is None or (expected == 0 and _record(last) is None):
            return number
        revision = 0 if _record(last) is None else number
        raise RevisionError(f"{key} is at revision {revision}, not {expected}")

    async def _guard_for_any(self, key: str) -> int:
        last = await self._last(key)
        return 0 if last is None else last.seq

    async def _store(self, key: str, value: bytes, guard: int, identifier: str, operation: str) -> PublishAnswer | None:
        headers = {GUARD: str(guard), "Tw-Id": identifier}
        if operation:
            headers |= {_OPERATION: operation, "Nats-TTL": str(DELETED_SECONDS)}
        return await self._api.store(self._subject(key), value, headers, TRY_SECONDS)

    # Reading.

    def _subject(self, key: str) -> str:
        return self._names.directory_prefix(shard_of(key, self._shards)) + key_to_subject(key)

    async def _last(self, key: str) -> StoredMessage | None:
        stream = self._names.directory_stream(shard_of(key, self._shards))
        return await self._newest.last(stream, self._subject(key))

    async def _list(self, shard: int, prefix: str) -> dict[str, Record]:
        filtered = prefix_to_filter(prefix)
        found = await self._matches(shard, [self._names.directory_prefix(shard) + filtered])
        if found is None:
            found = {}
            async for names in self._names_of(shard, filtered):
                for first in range(0, len(names), VALUES_PAGE):
                    found |= await self._values(shard, names[first : first + VALUES_PAGE])
        return {key: record for key, record in found.items() if key.startswith(prefix) and key != SETTINGS_KEY}

    async def _values(self, shard: int, subjects: Sequence[str]) -> dict[str, Record]:
        """Return the records of subjects; those that are large come in several answers."""
        found = await self._matches(shard, subjects)
        if found is not None:
            return found
        middle = len(subjects) // 2
        return {**await self._values(shard, subjects[:middle]), **await self._values(shard, subjects[middle:])}

    async def _matches(self, shard: int, subjects: Sequence[str]) -> dict[str, Record] | None:
        """Return the records of all that match, by a replica that has got as far as the leader; None if too many."""
        stream, prefix = self._names.directory_stream(shard), self._names.directory_prefix(shard)
        known = await self._last_number(stream)
        ends = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        request = {"multi_last": subjects, "batch": MATCHES_MAX}
        while True:
            messages, end = await self._api.page_to_end(stream, request)
            if end.status == STATUS_TOO_MANY or end.number("Nats-Num-Pending") > 0:
                return None
            # A replica that finds nothing does not tell how far it is; an empty answer is asked of the leader.
            is_current = (
                end.number("Nats-UpTo-Sequence") >= known if messages else await self._is_empty(stream, subjects)
            )
            if is_current:
                return dict(_read(messages, len(prefix)))
            if asyncio.get_running_loop().time() > ends:
                raise StoreError("no replica of the directory is up to date", retry_after_ms=RETRY_AFTER_MS)
            await asyncio.sleep(0.005)

    async def _is_empty(self, stream: str, subjects: Iterable[str]) -> bool:
        for subject in subjects:
            info = await self._api.call(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
            if info["state"].get("subjects"):
                return False
        return True

    async def _last_number(self, stream: str) -> int:
        info = await self._api.call(f"STREAM.INFO.{stream}", {})
        return int(info["state"]["last_seq"])

    async def _names_of(self, shard: int, filtered: str) -> AsyncIterator[Sequence[str]]:
        """Yield the subjects of a stream, sorted, each once, as its leader knows them."""
        stream = self._names.directory_stream(shard)
        offset, last = 0, ""
        while True:
            request: dict[str, Any] = {"subjects_filter": self._names.directory_prefix(shard) + filtered}
            info = await self._api.call(f"STREAM.INFO.{stream}", {**request, "offset": offset})
            subjects = sorted(info["state"].get("subjects") or {})
            names = [subject for subject in subjects if subject > last]
            if names:
                last = names[-1]
                yield names
            if len(subjects) < NAMES_PAGE:
                return
            # Some that were before it may have vanished meanwhile.
            offset += NAMES_PAGE - NAMES_OVERLAP

    # Watching.

    def _subscribe(self, shard: int) -> Callable[[], None]:
        prefix = self._names.directory_live_prefix(shard)
        return self._api.connection.subscribe(f"{prefix}>", partial(self._on_live, shard, len(prefix)))

    def _on_gap(self) -> None:
        self._seen.clear()
        self._watchers.overrun()

    def _on_live(self, shard: int, skip: int, message: Message) -> None:
        number = message.number("Nats-Sequence")
        seen = self._seen.get(shard, number - 1)
        self._seen[shard] = number
        if number > seen + 1:
            # One was lost on its way: only a new list tells what.
            self._watchers.overrun()
        key = subject_to_key(message.subject[skip:])
        record = None if message.headers.get(_OPERATION) == _DELETED else Record(message.payload, number)
        self._watchers.tell(Change(key, record))


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _record(message: StoredMessage | None) -> Record | None:
    if message is None or f"{_OPERATION}: {_DELETED}".encode() in message.hdrs:
        return None
    return Record(message.data, message.seq)


def _read(messages: Iterable[Message], skip: int) -> Iterable[tuple[str, Record]]:
    for message in messages:
        if message.headers.get(_OPERATION) != _DELETED:
            subject = message.headers.get("Nats-Subject", "")
            yield subject_to_key(subject[skip:]), Record(message.payload, message.number("Nats-Sequence"))
