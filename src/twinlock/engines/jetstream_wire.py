"""The NATS client protocol as bytes: what is sent, and a parser for what comes. No socket, no clock.

The log's hot path needs neither decoded headers nor a queue and a task for each message, which is what a general
client costs; here a message is one call with slices of what was received.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from twinlock.errors import StoreError

STATUS_BATCH_END = 204
STATUS_NOT_FOUND = 404
STATUS_TOO_MANY = 413
STATUS_NO_RESPONDERS = 503
_STATUS_AT = len(b"NATS/1.0 ")
_CONTROL_LINE_BYTES_MAX = 1 << 20


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message as it came: `headers` are its raw lines, empty if it has none."""

    subject: bytes
    headers: bytes
    payload: bytes

    @property
    def status(self) -> int:
        """The status that the server answered with; 0 for an ordinary message."""
        digits = self.headers[_STATUS_AT : _STATUS_AT + 3]
        return int(digits) if self.headers[_STATUS_AT - 1 : _STATUS_AT] == b" " and digits.isdigit() else 0

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header, or None."""
        mark = b"\r\n" + name + b": "
        at = self.headers.find(mark)
        if at < 0:
            return None
        at += len(mark)
        return self.headers[at : self.headers.index(b"\r\n", at)]

    def number(self, name: bytes) -> int:
        """Return the value of a header that is a number; 0 where there is none."""
        return int(self.header(name) or 0)


class Listener(ABC):
    """What a parser tells of."""

    @abstractmethod
    def on_message(self, subscription: int, message: Message) -> None:
        """Take a message of a subscription."""

    @abstractmethod
    def on_control(self, verb: bytes, rest: bytes) -> None:
        """Take any other line: INFO, PING, PONG, +OK or -ERR."""


class Parser:
    """Cuts the stream of a connection into messages; keeps what is not yet whole."""

    __slots__ = ("_buffer", "_listener", "_needed")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = bytearray()
        self._needed = 0

    def feed(self, data: bytes) -> None:
        """Take what was received, and tell of everything that is whole now.

        Raises:
            StoreError: it is not the protocol of NATS.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        done = self._parse(data)
        if done < len(data):
            self._buffer += memoryview(data)[done:]

    def _parse(self, data: bytes) -> int:
        """Tell of all whole messages; return where the first begins that is not whole."""
        at, size = 0, len(data)
        self._needed = 0
        while at < size:
            end = data.find(b"\r\n", at)
            if end < 0:
                if size - at > _CONTROL_LINE_BYTES_MAX:
                    raise StoreError("a line without an end")
                return at
            first = data[at]
            if first == 77 or first == 72:  # MSG or HMSG
                after = self._message(data, data[at:end].split(), end + 2)
                if after == 0:
                    self._needed -= at
                    return at
                at = after
            else:
                verb, _, rest = data[at:end].partition(b" ")
                self._listener.on_control(verb.upper(), rest)
                at = end + 2
        return at

    def _message(self, data: bytes, words: list[bytes], at: int) -> int:
        """Tell of a message whose first line was read; return where the next begins, 0 if it is not whole."""
        try:
            end = at + int(words[-1])
            has_headers = words[0] == b"HMSG"
            body = at + int(words[-2]) if has_headers else at
            subscription = int(words[2])
        except (ValueError, IndexError) as exc:
            raise StoreError("a message line that cannot be read") from exc
        if len(data) < end + 2:
            self._needed = end + 2
            return 0
        self._listener.on_message(subscription, Message(words[1], data[at:body], data[body:end]))
        return end + 2


def publish(subject: bytes, payload: bytes, reply: bytes = b"", headers: bytes = b"") -> bytes:
    """Return the bytes that publish a message; `headers` are whole lines, with the first and the empty last one."""
    if headers:
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
            subject,
            reply,
            len(headers),
            len(headers) + len(payload),
            headers,
            payload,
        )
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)


def header_lines(**values: bytes | int) -> bytes:
    """Return header lines; underscores in a name stand for hyphens."""
    lines = [b"NATS/1.0\r\n"]
    for name, value in values.items():
        text = value if isinstance(value, bytes) else b"%d" % value
        lines.append(b"%b: %b\r\n" % (name.replace("_", "-").encode(), text))
    lines.append(b"\r\n")
    return b"".join(lines)
