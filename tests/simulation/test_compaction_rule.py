"""A model of the compaction rule: devices at any position pack and cut, and a late joiner still gets everything."""

import random
from dataclasses import dataclass, field

import pytest

from twinlock.replica.compaction import Progress, base_after_change, base_after_snapshot, cut_upto


@dataclass
class Entry:
    """A change (one write to one document) or a snapshot (the sets of writes of some documents)."""

    seq: int
    author: int
    write: tuple[str, int] | None = None
    as_of: int = 0
    states: dict[str, frozenset[int]] = field(default_factory=dict)


@dataclass
class Log:
    """The server's log: entries below `start` are delivered to nobody."""

    entries: list[Entry] = field(default_factory=list)
    start: int = 1
    head: int = 0

    def append(self, entry: Entry, gap: int) -> None:
        """Give an entry the next seq; numbers may have gaps."""
        self.head += gap
        entry.seq = self.head
        self.entries.append(entry)

    def after(self, cursor: int) -> list[Entry]:
        """Return what is delivered after a cursor."""
        return [entry for entry in self.entries if entry.seq > cursor and entry.seq >= self.start]


@dataclass
class Document:
    """A device's knowledge of a document."""

    writes: frozenset[int] = frozenset()
    base_seq: int = 0
    last_seq: int = 0


class Device:
    """A reader and writer that follows the rule."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.cursor = 0
        self.read_from = 1
        self.target = 0
        self.documents: dict[str, Document] = {}
        self.packs: dict[int, int] = {}
        self.unreadable: dict[int, Entry] = {}
        self.blind = False

    @property
    def progress(self) -> Progress:
        return Progress(self.read_from, self.cursor, sorted(self.unreadable))

    def read(self, log: Log, count: int) -> None:
        """Attach and read some entries."""
        if log.start > self.cursor + 1:
            # What was cut unread is not known to have been read, whatever was read before it.
            self.read_from = log.start
            self.cursor = log.start - 1
            self.target = log.head
        for entry in log.after(self.cursor)[:count]:
            if self.blind and entry.author != self.name:
                self.unreadable[entry.seq] = entry
            else:
                self.merge(entry)
            self.cursor = entry.seq

    def regain_sight(self) -> None:
        """A missing key came: what lay in quarantine is merged late."""
        self.blind = False
        for seq in sorted(self.unreadable):
            self.merge(self.unreadable.pop(seq))

    def merge(self, entry: Entry) -> None:
        if entry.write is not None:
            self.note_change(entry.write, entry.seq)
            return
        for name, writes in entry.states.items():
            document = self.documents.setdefault(name, Document())
            document.base_seq = base_after_snapshot(
                document.base_seq, document.last_seq, entry.as_of, entry.seq, self.progress
            )
            document.last_seq = max(document.last_seq, entry.seq)
            document.writes |= writes

    def note_change(self, write: tuple[str, int], seq: int) -> None:
        """Merge one write: a delivered entry, or an own one by its acknowledgement, ahead of the cursor."""
        document = self.documents.setdefault(write[0], Document())
        document.writes |= {write[1]}
        document.base_seq = base_after_change(document.base_seq, seq)
        document.last_seq = max(document.last_seq, seq)

    def pack(self, log: Log, size: int, gap: int) -> None:
        """Append a snapshot of the documents with the lowest base_seq, unless something before may be missing."""
        if self.unreadable or self.cursor < self.target:
            return
        oldest = sorted(self.documents, key=lambda name: (self.documents[name].base_seq, name))[:size]
        states = {name: self.documents[name].writes for name in oldest}
        entry = Entry(0, self.name, as_of=self.cursor, states=states)
        log.append(entry, gap)
        self.packs[entry.seq] = entry.as_of

    def cut(self, log: Log) -> None:
        """Cut by the newest own pack that was read back."""
        seen = [as_of for seq, as_of in self.packs.items() if seq <= self.cursor]
        if not seen:
            return
        lowest = min((document.base_seq for document in self.documents.values()), default=None)
        log.start = max(log.start, cut_upto(max(seen), lowest, self.progress) + 1)


def run(seed: int) -> None:
    chance = random.Random(seed)
    log = Log()
    devices = [Device(number) for number in range(chance.randint(2, 4))]
    truth: dict[str, set[int]] = {}
    for step in range(chance.randint(20, 120)):
        take_step(step, chance, log, devices, truth)
    for device in devices:
        device.regain_sight()
    for device in [*devices, Device(99)]:
        device.read(log, 10_000)
        seen = {name: set(document.writes) for name, document in device.documents.items()}
        assert seen == truth, f"seed {seed}, device {device.name}"


def take_step(step: int, chance: random.Random, log: Log, devices: list[Device], truth: dict[str, set[int]]) -> None:
    device = chance.choice(devices)
    gap = chance.choice((1, 1, 1, 7))
    match chance.choice(("write", "write", "write", "read", "read", "pack", "cut", "join", "blind")):
        case "write":
            write = (f"d{chance.randrange(8)}", step)
            log.append(Entry(0, device.name, write=write), gap)
            truth.setdefault(write[0], set()).add(step)
            if chance.random() < 0.7:
                device.note_change(write, log.head)
        case "read":
            device.read(log, chance.choice((1, 3, 1000)))
        case "pack":
            # A device is at the head before it packs, but more may have been appended meanwhile.
            if chance.random() < 0.7:
                device.read(log, 1000)
            device.pack(log, chance.choice((1, 2, 4)), gap)
        case "cut":
            device.cut(log)
        case "join" if len(devices) < 7 and chance.random() < 0.3:
            devices.append(Device(len(devices)))
        case "blind" if chance.random() < 0.5:
            device.regain_sight() if device.blind else setattr(device, "blind", True)


@pytest.mark.parametrize("block", range(4))
def test_no_write_is_lost_by_packs_and_cuts_in_any_order(block):
    for seed in range(block * 100, block * 100 + 100):
        run(seed)


@pytest.mark.slow
def test_no_write_is_lost_over_many_seeds():
    for seed in range(10_000):
        run(seed)
