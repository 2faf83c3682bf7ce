"""The signed log: a hash chain of JSON bodies, each signed by its author. See spec/sealing.md, section 4.

What is signed is kept as the exact bytes; nothing is encoded again before a signature is checked. After that the body
must be in canonical form, so that no two parsers can read two meanings from it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping

import msgspec

from twinlock.errors import LogForkError, LogInvalidError, UpdateNeededError
from twinlock.ids import ID_BYTES, Counter, DeviceId, LogId
from twinlock.protocol.labels import label, u32
from twinlock.protocol.limits import LOG_ENTRY_BYTES_MAX
from twinlock.protocol.proofs import verify

HEAD_BYTES = 32
PREFIX_BYTES = 8
"""How much of a log's head an envelope names."""

KEY_BYTES = 32
COUNTER_MAX = (1 << 53) - 1
"""A counter that every JSON parser reads exactly."""

NO_HEAD = bytes(HEAD_BYTES)
NO_LOG = LogId(bytes(ID_BYTES))
"""The log id under which a space's genesis is hashed: its real id follows from that hash."""

FieldValue = str | int | bytes | Mapping[str, "FieldValue"] | Mapping[DeviceId, Counter]
"""What a field of a body can hold; bytes, also as names, are written as base64url without padding."""


class LogPosition(msgspec.Struct, frozen=True):
    """How far a log has been read: the number of entries, and the hash of the newest."""

    seq: int = 0
    head: bytes = NO_HEAD


def entry_head(log_id: bytes, seq: int, prev_head: bytes, body: bytes) -> bytes:
    """Return an entry's hash, which covers all entries before it; `seq` counts from 1."""
    return hashlib.sha256(label("log") + log_id + u32(seq) + prev_head + hashlib.sha256(body).digest()).digest()


def signature_message(head: bytes) -> bytes:
    """Return what the author of an entry signs."""
    return label("log-sig", head)


def check_entry(log_id: bytes, after: LogPosition, body: bytes, sig: bytes, sign_pk: bytes) -> LogPosition:
    """Verify that an entry follows a position and is signed by a key, and return the position after it.

    Raises:
        SignatureError: it is not signed by that key, or belongs to another place or another log.
    """
    head = entry_head(log_id, after.seq + 1, after.head, body)
    verify(sign_pk, sig, signature_message(head))
    return LogPosition(after.seq + 1, head)


def check_continuation(known: LogPosition, told: LogPosition) -> None:
    """Refuse a log that is shorter than, or different from, the one this side has read.

    Raises:
        LogForkError: what was told cannot be a continuation of what is known.
    """
    if told.seq < known.seq or (told.seq == known.seq and told.head != known.head):
        raise LogForkError(f"{known.seq} entries are known, {told.seq} were told")


def encode_body(kind: str, fields: Mapping[str, FieldValue]) -> bytes:
    """Return the canonical bytes of an entry's body: UTF-8 JSON, sorted keys, no spaces."""
    return msgspec.json.encode({**_written(fields), "type": kind}, order="sorted")


class Body:
    """The fields of an entry's body, each read once by its type; whatever is left over stops the replay."""

    __slots__ = ("_bytes", "_fields", "type")

    def __init__(self, body: bytes) -> None:
        if len(body) > LOG_ENTRY_BYTES_MAX:
            raise LogInvalidError(f"an entry of {len(body)} bytes")
        try:
            fields = msgspec.json.decode(body, type=dict[str, object])
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise LogInvalidError("an entry is not a JSON object") from exc
        self._fields = Fields(fields)
        self._bytes = body
        self.type = self._fields.text("type")

    @property
    def fields(self) -> Fields:
        """The fields beside the type."""
        return self._fields

    def finish(self) -> None:
        """Check that nothing is left over and that the body's bytes are the only way to write it.

        Raises:
            UpdateNeededError: a field that this version does not know may change what the entry means.
            LogInvalidError: the body is not canonical.
        """
        self._fields.finish(self.type)
        if msgspec.json.encode(msgspec.json.decode(self._bytes), order="sorted") != self._bytes:
            raise LogInvalidError("an entry is not in canonical form")


class Fields:
    """Named fields, each taken once by its type."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = dict(fields)

    def copy(self) -> Fields:
        """Return the same fields, to look at them without taking them."""
        return Fields(self._fields)

    def text(self, name: str) -> str:
        """Take a string."""
        value = self._take(name)
        if not isinstance(value, str):
            raise LogInvalidError(f"{name} is not a string")
        return value

    def integer(self, name: str, most: int) -> int:
        """Take an integer from 0 to `most`."""
        return _integer(name, self._take(name), most)

    def octets(self, name: str, least: int, most: int | None = None) -> bytes:
        """Take bytes of a given length, or of a range of lengths."""
        return _octets_of(name, self.text(name), least, most)

    def has(self, name: str) -> bool:
        """Tell whether a field is there and not yet taken."""
        return name in self._fields

    def counters(self, name: str) -> dict[DeviceId, Counter]:
        """Take a counter for each of some devices."""
        return {
            DeviceId(_octets_of(name, key, ID_BYTES)): Counter(_integer(name, value, COUNTER_MAX))
            for key, value in self._object(name).items()
        }

    def part(self, name: str) -> Fields:
        """Take fields that lie in a field; `finish` them as well."""
        return Fields(self._object(name))

    def finish(self, kind: str) -> None:
        """Check that nothing is left over.

        Raises:
            UpdateNeededError: a field that this version does not know may change what the entry means.
        """
        if self._fields:
            raise UpdateNeededError(f"unknown fields in an entry of type {kind}")

    def _object(self, name: str) -> dict[str, object]:
        value = self._take(name)
        if not isinstance(value, dict):
            raise LogInvalidError(f"{name} is not an object")
        return value

    def _take(self, name: str) -> object:
        if name not in self._fields:
            raise LogInvalidError(f"{name} is missing")
        return self._fields.pop(name)


def _written(fields: Mapping[str, FieldValue]) -> dict[str, object]:
    return {name: _written_value(value) for name, value in fields.items()}


def _written_value(value: FieldValue) -> object:
    match value:
        case bytes():
            return _text(value)
        case Mapping():
            return {
                _text(name) if isinstance(name, bytes) else name: _written_value(each) for name, each in value.items()
            }
    return value


def _integer(name: str, value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise LogInvalidError(f"{name} is not an integer from 0 to {most}")
    return value


def _octets_of(name: str, text: str, least: int, most: int | None = None) -> bytes:
    value = _octets(name, text)
    if not least <= len(value) <= (least if most is None else most):
        raise LogInvalidError(f"{name} has {len(value)} bytes")
    return value


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _octets(name: str, text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise LogInvalidError(f"{name} is not base64url") from exc
    # Spare bits in the last letter would let one value be written in several ways.
    if _text(data) != text:
        raise LogInvalidError(f"{name} is not canonical base64url")
    return data
