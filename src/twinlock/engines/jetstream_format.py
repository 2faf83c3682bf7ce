"""What a cluster stores, byte by byte: names of streams and subjects, messages of a log, and how seqs are made."""

from __future__ import annotations

import re
from enum import IntEnum
from zlib import crc32

import msgspec

from twinlock.errors import StoreError, UpdateNeededError
from twinlock.ids import DeviceId, Seq, SpaceId
from twinlock.protocol.envelope import is_laid_out
from twinlock.protocol.frames import Entry

FORMAT = 1
FORMAT_TIMES = 2
"""Of a message with a time for each envelope: a node that knows nothing of them must not read it."""

PLACES = 4096
"""Seqs that a message has room for: seq = number in the stream * 4096 + place in the message."""

SETTINGS_KEY = "cluster/settings"
_PARTITION_BYTES = 2
_DEVICE = slice(24, 40)
_KINDS = frozenset({0, 1, 2})
_PLAIN = re.compile(r"[A-Za-z0-9_-]")


class MessageKind(IntEnum):
    """What a message of a log is."""

    ENTRIES = 0
    FENCE = 1
    CUT = 2


class LogMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One append, or a note, which has no envelopes.

    `bytes_before` and `count_before` are the bytes and the number of all envelopes that were ever appended to the space
    before this message: the append's guard makes them exact. `origin` names the node's life and the append within it.
    `later_ms` says for each envelope how much later than `received_ms` it came (it may be earlier); empty: all at once.
    """

    format: int
    kind: int
    received_ms: int
    bytes_before: int
    envelopes: list[bytes]
    count_before: int
    origin: bytes
    later_ms: tuple[int, ...] = ()

    @property
    def bytes_after(self) -> int:
        """The bytes of all envelopes up to the end of this message."""
        return self.bytes_before + sum([len(envelope) for envelope in self.envelopes])


_decoder = msgspec.msgpack.Decoder(LogMessage)
_encoder = msgspec.msgpack.Encoder()


def encode_message(message: LogMessage) -> bytes:
    """Return a message's bytes."""
    return _encoder.encode(message)


def decode_message(data: bytes) -> LogMessage:
    """Read a message of a log.

    Raises:
        StoreError: it is none.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    try:
        message = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise StoreError("a message of a log cannot be read") from exc
    if message.format > FORMAT_TIMES:
        raise UpdateNeededError(f"format {message.format} of the log")
    if message.later_ms and len(message.later_ms) != len(message.envelopes):
        raise StoreError("a message of a log has not a time for each envelope")
    return message


UNREADABLE = LogMessage(FORMAT, 255, 0, 0, [], 0, b"")
"""Stands for what lies in a log and is no message of one: it counts as nothing, and what comes after it goes on."""


def read_stored(data: bytes) -> LogMessage:
    """Read what a log holds, whoever put it there; `UNREADABLE` for what no node writes.

    One bad message must not shut a space for ever. What it may have been shows in the next message's counts.

    Raises:
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    try:
        message = decode_message(data)
    except StoreError:
        return UNREADABLE
    if message.kind not in _KINDS or len(message.envelopes) > PLACES:
        return UNREADABLE
    return message if all(map(is_laid_out, message.envelopes)) else UNREADABLE


def seq_at(stream_seq: int, place: int) -> Seq:
    """Return the seq of an envelope."""
    return Seq(stream_seq * PLACES + place)


def head_of(stream_seq: int, message: LogMessage) -> Seq:
    """Return the seq of a message's last envelope."""
    return Seq(stream_seq * PLACES + len(message.envelopes) - 1)


def entries_of(stream_seq: int, message: LogMessage) -> list[Entry]:
    """Return a message's entries."""
    first, received_ms = stream_seq * PLACES, message.received_ms
    if message.later_ms:
        timed = enumerate(zip(message.envelopes, message.later_ms, strict=True))
        return [Entry(Seq(first + place), received_ms + later_ms, data) for place, (data, later_ms) in timed]
    return [Entry(Seq(first + place), received_ms, data) for place, data in enumerate(message.envelopes)]


def device_of(envelope: bytes) -> DeviceId:
    """Return who sealed an envelope, without parsing all of it."""
    return DeviceId(envelope[_DEVICE])


def partition_of(space: SpaceId) -> int:
    """Return a space's partition, which is in its id."""
    return int.from_bytes(space[:_PARTITION_BYTES], "big")


class Names:
    """The names of one cluster's streams and subjects; all begin alike, so that several fit into one NATS account."""

    __slots__ = ("_prefix", "broker", "live", "name", "streams")

    def __init__(self, name: str = "") -> None:
        mark = f"-{name}" if name else ""
        self.name = name
        self._prefix = f"tw{mark}"
        self.live = f"live{mark}"
        self.broker = f"sig{mark}"
        self.streams = f"TW{mark.upper()}"

    def log_stream(self, partition: int) -> str:
        """The stream of a partition."""
        return f"{self.streams}_{partition:04x}"

    def log_subjects(self, partition: int) -> str:
        """The subjects of a partition's stream."""
        return f"{self._prefix}.{partition:04x}.*"

    def log_subject(self, space: SpaceId) -> str:
        """The subject of a space."""
        return f"{self._prefix}.{partition_of(space):04x}.{space.hex()}"

    def live_subject(self, space: SpaceId) -> str:
        """Where a space's messages appear once they are stored."""
        return f"{self.live}.{partition_of(space):04x}.{space.hex()}"

    def directory_stream(self, shard: int) -> str:
        """The stream of a part of the directory."""
        return f"{self.streams}_DIRECTORY_{shard}"

    def directory_prefix(self, shard: int) -> str:
        """What the subjects of a part of the directory begin with."""
        return f"{self._prefix}.directory.{shard}."

    def directory_live_prefix(self, shard: int) -> str:
        """What the subjects begin with where a part's changes appear."""
        return f"{self.live}.directory.{shard}."


def shard_of(key: str, shards: int) -> int:
    """Return in which part of the directory a key is: by its second word, or its first if it has no other.

    What is said of the cluster itself is in the first part, for the number of parts stands there.
    """
    words = key.split("/", 2)
    if words[0] == "cluster":
        return 0
    return crc32((words[1] if len(words) > 1 else words[0]).encode()) % shards


def shards_of_prefix(prefix: str, shards: int) -> list[int]:
    """Return in which parts of the directory keys may be that begin with a prefix."""
    return [shard_of(prefix, shards)] if prefix.count("/") > 1 or prefix.startswith("cluster/") else list(range(shards))


def key_to_subject(key: str) -> str:
    """Return a directory key as words of a subject: other characters than letters, digits, `_` and `-` are escaped."""
    return ".".join([_escape(word) for word in key.split("/")])


def subject_to_key(words: str) -> str:
    """Return the key again."""
    return "/".join([_unescape(word) for word in words.split(".")])


def prefix_to_filter(prefix: str) -> str:
    """Return the narrowest subject filter that passes every key that begins with a prefix."""
    whole = prefix.rpartition("/")[0]
    return f"{key_to_subject(whole)}.>" if "/" in prefix else ">"


def _escape(word: str) -> str:
    # A word may not be empty.
    return "".join([char if _PLAIN.fullmatch(char) else f"={ord(char):02X}" for char in word]) or "="


def _unescape(word: str) -> str:
    if word == "=":
        return ""
    first, *rest = word.split("=")
    return first + "".join([chr(int(part[:2], 16)) + part[2:] for part in rest])
