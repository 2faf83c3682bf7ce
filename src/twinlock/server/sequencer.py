"""Decides for each pushed envelope: take it, know it already, or refuse it. Pure: no log, no clock, no socket.

The order of checks is that of spec/protocol.md, section 5. What is taken is counted on at once, so that pushes can be
pipelined; `restore` goes back to what is durable when an append failed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import msgspec

from twinlock.contracts import DeviceHead
from twinlock.errors import (
    ChainError,
    CounterConflictError,
    CounterGapError,
    ForeignEnvelopeError,
    LimitExceededError,
    MalformedEnvelopeError,
    OverloadedError,
    RoleError,
    StaleEpochError,
    StaleLogHeadError,
    TwinlockError,
)
from twinlock.ids import NO_ENVELOPE, AccountId, Counter, DeviceId, SpaceId
from twinlock.protocol import proofs
from twinlock.protocol.envelope import Envelope, Header, Kind, parse
from twinlock.protocol.labels import label
from twinlock.protocol.limits import ENVELOPE_BYTES_MAX
from twinlock.protocol.space_log import Member, Role, SpaceLogState
from twinlock.server.standing import refusal_of

NO_HEAD = DeviceHead(Counter(0), NO_ENVELOPE)
_COUNTER = slice(40, 48)
_DEVICE = slice(24, 40)
_LOG_HEAD = slice(56, 64)
HELD_RETRY_MS = 200
"""After how long a push is to come again that was held while its author's chains are being cut off."""


class Author(msgspec.Struct, frozen=True, gc=False):
    """Whose session it is that pushes."""

    account: AccountId
    device: DeviceId
    sign_pk: bytes


class Refusal(msgspec.Struct, frozen=True):
    """The first envelope of a push that was refused; `counter` is 0 where it could not be read."""

    counter: Counter
    error: TwinlockError


class Decision(msgspec.Struct, frozen=True):
    """What becomes of a push: `fresh` are to be appended, `known` were pushed before, then perhaps a refusal.

    Everything in a push after the refused envelope is refused with it, without words of its own.
    """

    fresh: list[Envelope]
    known: list[Envelope]
    refusal: Refusal | None


class Everybody:
    """Holds every account."""

    __slots__ = ()

    def __contains__(self, account: object) -> bool:
        return True


class Sequencer:
    """One space's chains and rules.

    `durable` holds the heads that a crash cannot take back, `_expected` those of devices with appends in flight.
    """

    __slots__ = ("_expected", "_healing", "_held", "_held_here", "_refused", "durable", "is_fenced", "rules", "space")

    def __init__(self, space: SpaceId, rules: SpaceLogState, heads: Mapping[DeviceId, DeviceHead]) -> None:
        self.space = space
        self.rules = rules
        self.durable: dict[DeviceId, DeviceHead] = dict(heads)
        self._expected: dict[DeviceId, DeviceHead] = {}
        self._refused: dict[DeviceId, Counter] = {}
        self._healing: set[DeviceId] = set()
        self._held: Container[AccountId] = ()
        self._held_here: Container[AccountId] = ()
        self.is_fenced = False
        """Whether another node is changing the space's signed log, so that everybody's pushes are held."""

    def decide(self, push: Sequence[bytes], author: Author) -> Decision:
        """Decide for the envelopes of one push, in order, up to the first that is refused."""
        if self._held and author.account in self._held:
            held = OverloadedError("the account's part in the space is changing", retry_after_ms=HELD_RETRY_MS)
            return self.refuse(push, author.device, held)
        fresh: list[Envelope] = []
        known: list[Envelope] = []
        for data in push:
            try:
                envelope = _parse_checked(data)
                if self._is_after_refusal(envelope):
                    return Decision(fresh, known, None)
                self._check(envelope, author)
                if self._is_fresh(envelope, author):
                    fresh.append(envelope)
                else:
                    known.append(envelope)
            except TwinlockError as error:
                return Decision(fresh, known, self._refuse(data, author.device, error))
        return Decision(fresh, known, None)

    def confirm(self, envelopes: Sequence[Envelope]) -> None:
        """Note that envelopes, in their order, are durable."""
        for envelope in envelopes:
            header = envelope.header
            expected = self._expected.get(header.device)
            if expected is not None and expected.counter == header.counter:
                self.durable[header.device] = self._expected.pop(header.device)
            elif header.counter > self.head_of(header.device).counter:
                self.durable[header.device] = DeviceHead(header.counter, envelope.id)

    def observe(self, envelopes: Iterable[bytes]) -> None:
        """Note that another node appended envelopes, in their order."""
        last = {data[_DEVICE]: data for data in envelopes}
        self.raise_heads({DeviceId(device): _head_after(data) for device, data in last.items()})

    def raise_heads(self, heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Take over durable heads, where they are above those known here."""
        for device, head in heads.items():
            if head.counter <= self.head_of(device).counter:
                continue
            self.durable[device] = head
            expected = self._expected.get(device)
            if expected is not None and expected.counter <= head.counter:
                del self._expected[device]
            if self._refused.get(device, head.counter + 1) <= head.counter:
                del self._refused[device]

    def restore(self, heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Go back to what is durable: an append failed. Nothing that was durable once is taken back."""
        self._expected.clear()
        self.raise_heads(heads)
        self._refused.clear()

    def take_back(self, envelopes: Sequence[Envelope]) -> None:
        """Count no longer on envelopes that were taken and are not on their way to the log; the last go first."""
        for envelope in reversed(envelopes):
            header = envelope.header
            if header.counter - 1 > self.head_of(header.device).counter:
                self._expected[header.device] = DeviceHead(Counter(header.counter - 1), header.prev)
            else:
                self._expected.pop(header.device, None)

    def hold(self, accounts: Container[AccountId]) -> None:
        """Have pushes of some accounts come again later, until `release`: their chains must stand still."""
        self._held_here = accounts
        self._hold()

    def release(self) -> None:
        """Take pushes of everybody again, unless another node holds them."""
        self.hold(())

    def fence(self, is_fenced: bool) -> None:
        """Hold everybody's pushes, or no longer, for the sake of another node."""
        self.is_fenced = is_fenced
        self._hold()

    def _hold(self) -> None:
        self._held = Everybody() if self.is_fenced else self._held_here

    def is_under_way(self, devices: Iterable[DeviceId] | None) -> bool:
        """Tell whether anything of some devices (None: of any) is taken but not yet durable."""
        return bool(self._expected) if devices is None else any(device in self._expected for device in devices)

    def head_of(self, device: DeviceId) -> DeviceHead:
        """Return the durable head of a device's chain."""
        return self.durable.get(device, NO_HEAD)

    def is_behind(self, data: bytes) -> bool:
        """Tell whether an envelope names a place of the signed log that is not known here."""
        return data[_LOG_HEAD] not in self.rules.head_prefixes

    def forget_refusal(self, device: DeviceId) -> None:
        """Take a device's pushes again: it has just learnt its head by attaching."""
        self._refused.pop(device, None)

    def allow_healing(self, device: DeviceId) -> None:
        """Take older epochs of a device that heals a restored server, until it seals under the newest again."""
        self._healing.add(device)

    def refuse(self, push: Sequence[bytes], device: DeviceId, error: TwinlockError) -> Decision:
        """Refuse a whole push for a reason that lies outside, such as a quota."""
        counter = _counter_of(push[0])
        refused = self._refused.get(device)
        if refused is not None and counter > refused:
            return Decision([], [], None)
        self._refused[device] = counter
        return Decision([], [], Refusal(counter, error))

    def _is_after_refusal(self, envelope: Envelope) -> bool:
        """Tell whether an envelope was under way behind one that was refused; the author has been told already."""
        header = envelope.header
        refused = self._refused.get(header.device)
        if refused is None or header.counter < refused:
            return False
        if header.counter == refused:
            del self._refused[header.device]
            return False
        return True

    def _refuse(self, data: bytes, device: DeviceId, error: TwinlockError) -> Refusal:
        self._refused[device] = Counter(self._expected.get(device, self.head_of(device)).counter + 1)
        return Refusal(_counter_of(data), error)

    def _check(self, envelope: Envelope, author: Author) -> None:
        header, rules = envelope.header, self.rules
        if header.device != author.device or header.space != self.space:
            raise ForeignEnvelopeError
        member = rules.members.get(author.account)
        if member is None or rules.is_shredded:
            raise refusal_of(rules, author.account) or RoleError()
        if header.counter <= self.head_of(header.device).counter:
            # What is durable is acknowledged again, whatever has become of epochs and roles since: its author may have
            # no other way to learn of it, for others may have compacted it away.
            return
        if header.kind is Kind.SIGNAL or not self._may_write(member, header):
            raise RoleError
        if len(member.granted) > 1 and self._is_unread(member, header):
            # A drop cannot be sealed again; everything else can, with what the log says now.
            raise RoleError if header.kind is Kind.DROP else StaleLogHeadError
        if header.kind is Kind.DROP:
            if header.epoch not in rules.epochs:
                raise StaleEpochError(f"epoch {header.epoch} is not known")
        elif header.epoch == rules.epoch:
            self._healing.discard(author.device)
        elif header.epoch not in rules.epochs or author.device not in self._healing:
            raise StaleEpochError(f"epoch {header.epoch}, the newest is {rules.epoch}")

    def _may_write(self, member: Member, header: Header) -> bool:
        if member.role.may_write(header.kind):
            return True
        # A drop cannot be sealed again. So one of a former sender that is still a member counts, as it does for every
        # reader, by the role that held at the head which it names.
        seq = self.rules.head_prefixes.get(header.log_head)
        if header.kind is not Kind.DROP or seq is None or member.role_at(seq) is not Role.SENDER:
            return False
        return not member.is_cut_off(header.device, header.counter, header.kind, seq, is_revoked=False)

    def _is_unread(self, member: Member, header: Header) -> bool:
        """Tell whether no reader would count an envelope: they judge it at the head of the log that it names."""
        seq = self.rules.head_prefixes.get(header.log_head)
        if seq is None:
            return True
        role = member.role_at(seq)
        is_granted = role is not None and role.may_write(header.kind)
        return not is_granted or member.is_cut_off(header.device, header.counter, header.kind, seq, is_revoked=False)

    def _is_fresh(self, envelope: Envelope, author: Author) -> bool:
        """Tell whether an envelope continues its chain, and count on it then; otherwise it was pushed before."""
        header = envelope.header
        head = self._expected.get(header.device) or self.head_of(header.device)
        if header.counter > head.counter + 1:
            raise CounterGapError(f"counter {header.counter} after {head.counter}")
        if header.counter <= head.counter:
            if header.counter == head.counter and envelope.id != head.id:
                raise CounterConflictError(f"counter {header.counter} is taken")
            return False
        if header.prev != head.id:
            raise ChainError
        if header.kind is Kind.SNAPSHOT:
            # Devices drop what a snapshot covers, so a forged one must not even be stored.
            proofs.verify(author.sign_pk, envelope.signature, label("envelope", envelope.id))
        self._expected[header.device] = DeviceHead(header.counter, envelope.id)
        return True


def _head_after(data: bytes) -> DeviceHead:
    envelope = parse(data)
    return DeviceHead(envelope.header.counter, envelope.id)


def _counter_of(data: bytes) -> Counter:
    return Counter(int.from_bytes(data[_COUNTER], "big")) if len(data) >= _COUNTER.stop else Counter(0)


def _parse_checked(data: bytes) -> Envelope:
    if len(data) > ENVELOPE_BYTES_MAX:
        raise LimitExceededError(f"an envelope of {len(data)} bytes, {ENVELOPE_BYTES_MAX} at most")
    envelope = parse(data)
    if envelope.header.counter == 0:
        raise MalformedEnvelopeError("counters begin at 1")
    return envelope
