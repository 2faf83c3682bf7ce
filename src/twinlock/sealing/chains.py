"""The chain of one device's envelopes in one space: what has been vouched for, and what waits to be.

`prev` is inside the signed bytes, so a valid signature vouches for the unbroken run before it. See spec/sealing.md,
section 5.
"""

from __future__ import annotations

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from twinlock.ids import NO_ENVELOPE, AccountId, Counter, DeviceId, EnvelopeId
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Entry
from twinlock.sealing.cipher import envelope_message
from twinlock.sealing.quarantine import QuarantineReason

WAITING_MAX = 256
"""How many unvouched envelopes of a device are kept at hand. What comes after is in quarantine all the same and is
judged again when the replica retries it."""

_NOT_BEGUN = Counter(-2)
"""A counter that no envelope follows."""

Link = tuple[Entry, Envelope]


class ChainHead(msgspec.Struct, frozen=True, gc=False):
    """The last envelope of a device's chain that was vouched for."""

    counter: Counter
    id: EnvelopeId


class _Waiting:
    """An envelope that nothing vouches for yet; its own signature is checked at most once."""

    __slots__ = ("is_signed", "link")

    def __init__(self, link: Link, is_signed: bool | None) -> None:
        self.link = link
        self.is_signed = is_signed


class DeviceChain:
    """Judge one device's envelopes in order: `extend` or `restart` with each, then `settle`."""

    __slots__ = ("_public_key", "_run", "_tail_counter", "_tail_id", "_waiting", "account", "device", "head")

    def __init__(self, device: DeviceId, account: AccountId, sign_pk: bytes, head: ChainHead | None) -> None:
        self.device = device
        self.account = account
        self.head: ChainHead | None = None
        self._public_key = Ed25519PublicKey.from_public_bytes(sign_pk)
        self._run: list[Link] = []
        self._waiting: dict[EnvelopeId, _Waiting] = {}
        self._tail_counter, self._tail_id = _NOT_BEGUN, NO_ENVELOPE
        if head is not None:
            self.adopt(head)

    def adopt(self, head: ChainHead) -> None:
        """Go on from a head that is known to be good. What waited at or below it waits no longer."""
        self.head = head
        self._tail_counter, self._tail_id = head.counter, head.id
        if self._waiting:
            self._waiting = {
                name: kept for name, kept in self._waiting.items() if kept.link[1].header.counter > head.counter
            }

    def forget_waiting(self) -> None:
        """Let nothing that came before be vouched for any more, unless it is placed again."""
        self._waiting.clear()

    def extend(self, link: Link) -> bool:
        """Add an envelope to the run if it follows its end: the common case."""
        envelope = link[1]
        header = envelope.header
        if header.counter != self._tail_counter + 1 or header.prev != self._tail_id:
            return False
        self._run.append(link)
        self._tail_counter = header.counter
        self._tail_id = envelope.id
        return True

    def restart(self, link: Link) -> QuarantineReason | None:
        """Place an envelope that does not follow the settled run; return why it has no place, None if it has one."""
        header = link[1].header
        # A first envelope, and no other, has no predecessor.
        if (header.counter == 1) != (header.prev == NO_ENVELOPE):
            return QuarantineReason.PREV
        if self.head is None:
            self._run.append(link)
            self._tail_counter, self._tail_id = header.counter, link[1].id
            return None
        if header.counter <= self.head.counter:
            return QuarantineReason.REPLAY
        if header.counter > self.head.counter + 1:
            self._wait(link, None)
            return QuarantineReason.GAP
        return None if self.extend(link) else QuarantineReason.PREV

    def settle(self) -> tuple[list[Link], list[Link]]:
        """Verify the run; return what is now vouched for, in order, and what of the run is not.

        An envelope may be in both: its own signature failed, and a later one vouched for it.
        """
        run, self._run = self._run, []
        good = len(run)
        # Searched from the end: one check is enough for a run whose last signature holds.
        while good and not self._is_signed(run[good - 1][1]):
            good -= 1
        vouched, unvouched = run[:good], run[good:]
        if vouched:
            before = self._path_to(vouched[0])[:-1] if self.head is None else []
            vouched = before + vouched
            self.adopt(_head_of(vouched[-1]))
        elif run:
            self._reset_tail()
        for link in unvouched:
            self._wait(link, False)
        if self._waiting:
            vouched = vouched + self._release()
        return vouched, unvouched

    def _release(self) -> list[Link]:
        """Free what waits if a signed envelope among it leads back to the head without a gap."""
        head = self.head
        if head is None:
            return []
        for waiting in sorted(self._waiting.values(), key=_counter_of, reverse=True):
            path = self._path_to(waiting.link)
            first = path[0][1].header
            if first.prev != head.id or first.counter != head.counter + 1:
                continue
            if waiting.is_signed is None:
                waiting.is_signed = self._is_signed(waiting.link[1])
            if waiting.is_signed:
                self.adopt(_head_of(path[-1]))
                return path
        return []

    def _path_to(self, link: Link) -> list[Link]:
        """Return what waits before an envelope without a gap, and the envelope itself at the end."""
        path = [link]
        header = link[1].header
        while before := self._waiting.get(header.prev):
            if before.link[1].header.counter != header.counter - 1:
                break
            path.append(before.link)
            header = before.link[1].header
        path.reverse()
        return path

    def _is_signed(self, envelope: Envelope) -> bool:
        try:
            self._public_key.verify(envelope.signature, envelope_message(envelope.id))
        except InvalidSignature:
            return False
        return True

    def _wait(self, link: Link, is_signed: bool | None) -> None:
        # The same envelope may come again with another signature, which is not part of its id.
        if link[1].id in self._waiting or len(self._waiting) < WAITING_MAX:
            self._waiting[link[1].id] = _Waiting(link, is_signed)

    def _reset_tail(self) -> None:
        head = self.head
        self._tail_counter, self._tail_id = (head.counter, head.id) if head else (_NOT_BEGUN, NO_ENVELOPE)


def _head_of(link: Link) -> ChainHead:
    return ChainHead(link[1].header.counter, link[1].id)


def _counter_of(waiting: _Waiting) -> Counter:
    return waiting.link[1].header.counter
