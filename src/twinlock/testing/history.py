"""What happened to the clients of a run, one event after the other, in memory and in a file to look into.

A load under faults tells it all to one `Recorder`; `twinlock.testing.checker` then says whether it may have happened
so. A client is one device with one name. Ids are kept as the hex of their first bytes: enough to tell them apart, short
enough to read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

MARK_BYTES = 8

Seen = tuple[int, str, int, str]
"""An entry as it was delivered: its seq, device, counter and id."""


def mark(identifier: bytes) -> str:
    """Return how an id of a device or an envelope is written in a history."""
    return identifier[:MARK_BYTES].hex()


class _Event(msgspec.Struct, frozen=True, tag_field="what", gc=False):
    """Something that happened at a time of the machine's monotonic clock, the same for all its processes."""

    at_s: float


class _ClientEvent(_Event, frozen=True, gc=False):
    """Something that happened to a client."""

    client: str


class _SpaceEvent(_ClientEvent, frozen=True, gc=False):
    """Something that happened to a client in a space."""

    space: str


class Connected(_ClientEvent, frozen=True, tag="connected"):
    """The client is welcome at a node."""

    node: str


class Disconnected(_ClientEvent, frozen=True, tag="disconnected"):
    """The connection, or the attempt to make one, ended; `retry_after_ms` is what the node asked for."""

    why: str
    retry_after_ms: int = 0


class Joined(_SpaceEvent, frozen=True, tag="joined"):
    """The space was attached: asked for from `cursor` on, delivered from `resume` on."""

    device: str
    incarnation: str
    cursor: int
    resume: int
    head: int
    own_counter: int


class Pushed(_SpaceEvent, frozen=True, tag="pushed"):
    """Envelopes were sent, each with counter and id, for the first time or again."""

    device: str
    envelopes: Sequence[tuple[int, str]]


class Acked(_SpaceEvent, frozen=True, tag="acked"):
    """The server called envelopes durable: counter and seq of each."""

    device: str
    acked: Sequence[tuple[int, int]]


class Rejected(_SpaceEvent, frozen=True, tag="rejected"):
    """The server refused an envelope and all that followed; `own_counter` is the head that it told, 0 if none."""

    device: str
    counter: int
    code: str
    retry_after_ms: int
    own_counter: int


class Delivered(_SpaceEvent, frozen=True, tag="delivered"):
    """Entries came."""

    entries: Sequence[Seen]


class Finished(_SpaceEvent, frozen=True, tag="finished"):
    """The client has read all of the space, after the last write of the run was acknowledged."""


class Fault(_Event, frozen=True, tag="fault"):
    """Something was done to a machine, a disk, a clock or the network; or its cause is gone again."""

    kind: str
    target: str
    is_over: bool = False


Event = Connected | Disconnected | Joined | Pushed | Acked | Rejected | Delivered | Finished | Fault
_encode_event = msgspec.json.Encoder().encode


class Recorder:
    """Takes down a run.

    Args:
        path: the file of JSON lines that is written beside `events`; none if empty.
    """

    __slots__ = ("_file", "events")

    def __init__(self, path: Path | None = None) -> None:
        self.events: list[Event] = []
        self._file: IO[bytes] | None = path.open("wb") if path is not None else None

    def note(self, event: Event) -> None:
        """Take down what has just happened."""
        self.events.append(event)
        if self._file is not None:
            self._file.write(_encode_event(event) + b"\n")
            if isinstance(event, Fault):
                # What follows a fault may be the end of the run: the file must tell what led to it.
                self._file.flush()

    def fault(self, kind: str, target: str, is_over: bool = False) -> None:
        """Take down that a fault begins now, or that its cause is gone."""
        self.note(Fault(time.monotonic(), kind, target, is_over))

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def read_history(path: Path) -> list[Event]:
    """Return what a recorder wrote; a line that was torn by the end of its process is left out."""
    decoder = msgspec.json.Decoder(Event)
    lines = path.read_bytes().split(b"\n")
    return [decoder.decode(line) for line in lines[:-1]]
