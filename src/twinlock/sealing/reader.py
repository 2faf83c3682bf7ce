"""The reader: every check between a delivered entry and its opened payload, in order. See spec/sealing.md, section 5.

A failure up to the signature moves nothing. A failure after it (key, AEAD, padding, decoding, timestamp) moves the
chain and quarantines that envelope alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

from twinlock.errors import (
    ClockSkewError,
    DocumentTooLargeError,
    LimitExceededError,
    MalformedEnvelopeError,
    OpenError,
    TwinlockError,
    UpdateNeededError,
)
from twinlock.ids import AccountId, Counter, DeviceId, EnvelopeId, Epoch, Seq, SpaceId
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.envelope import (
    ENVELOPE_BYTES_MIN,
    HEADER_BYTES,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    VERSION,
    Envelope,
    Header,
    Kind,
    parse,
)
from twinlock.protocol.frames import Entry
from twinlock.protocol.limits import ENVELOPE_BYTES_MAX
from twinlock.protocol.space_log import Member, SpaceLogState
from twinlock.sealing.chains import ChainHead, DeviceChain, Link
from twinlock.sealing.cipher import open_padded
from twinlock.sealing.padding import unpad
from twinlock.sealing.quarantine import Quarantined, QuarantineReason
from twinlock.sealing.space_keys import EpochKeys

T = TypeVar("T")
_NO_NONCE = bytes(NONCE_BYTES)
_NO_FLAGS = bytes(2)
_STORED_KINDS = frozenset({Kind.CHANGE, Kind.SNAPSHOT, Kind.DROP})


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where a payload comes from: its place in the space's log, and who wrote it."""

    seq: Seq
    received_ms: int
    kind: Kind
    epoch: Epoch
    account: AccountId
    device: DeviceId
    counter: Counter
    id: EnvelopeId


class Opened(msgspec.Struct, Generic[T], frozen=True):
    """A payload that passed every check, as `decode` returned it."""

    source: Source
    content: T


class Page(msgspec.Struct, Generic[T], frozen=True):
    """What became of a page of entries. Store all of it in one transaction.

    `opened` is sorted by seq and may hold entries of earlier pages: each leaves the quarantine if it was there.
    `quarantined` enters it, or replaces the reason it stands there with. `heads` are the chains that moved.
    """

    opened: list[Opened[T]]
    quarantined: list[Quarantined]
    heads: dict[DeviceId, ChainHead]


class ChainReader(Generic[T]):
    """Verify and open the entries of one space.

    `decode(payload, source)` turns a payload into what the caller stores, and refuses it by a `TwinlockError`:
    `ClockSkewError` for an edit stamped too late, `UpdateNeededError` for what a newer version wrote, a limit, or
    any other when it is malformed. `keys_of` returns None for an epoch whose keys this device does not hold now.

    If what `read` returned could not be stored, make a new reader from the heads that are.
    """

    __slots__ = ("_accounts", "_authors", "_chains", "_decode", "_heads", "_keys_of", "_log", "_passes", "_space")

    def __init__(
        self,
        log: SpaceLogState,
        accounts: Iterable[AccountState],
        keys_of: Callable[[Epoch], EpochKeys | None],
        decode: Callable[[bytes, Source], T],
        heads: Mapping[DeviceId, ChainHead],
    ) -> None:
        self._space: SpaceId = log.space
        self._keys_of = keys_of
        self._decode = decode
        self._heads = dict(heads)
        self._chains: dict[DeviceId, DeviceChain] = {}
        self._authors: dict[DeviceId, tuple[AccountId, bytes]] = {}
        self._passes: dict[tuple[DeviceId, Kind, Epoch, bytes], _Pass] = {}
        self._accounts: dict[AccountId, AccountState] = {}
        self.update(log, accounts)

    def update(self, log: SpaceLogState, accounts: Iterable[AccountState]) -> None:
        """Take newer logs into account; `retry` what is in quarantine afterwards."""
        assert log.space == self._space
        self._log = log
        self._accounts.update((state.account, state) for state in accounts)
        self._passes.clear()
        for chain in self._chains.values():
            # A newer log may cut off what waits to be vouched for: it is judged again like the rest of the quarantine.
            chain.forget_waiting()
        self._authors = {
            device: (account, record.sign_pk)
            for account, state in self._accounts.items()
            # What former members wrote stays readable.
            if log.record_of(account) is not None
            for device, record in (*state.retired.items(), *state.devices.items())
        }

    def adopt(self, device: DeviceId, head: ChainHead) -> None:
        """Move a chain to a head known by other means, such as this device's own acknowledged envelopes."""
        self._heads[device] = head
        if chain := self._chains.get(device):
            chain.adopt(head)

    def head_of(self, device: DeviceId) -> ChainHead | None:
        """Return the last vouched envelope of a device."""
        return self._heads.get(device)

    def read(self, entries: Iterable[Entry]) -> Page[T]:
        """Check and open entries in the order of their seq."""
        page = _OpenPage()
        for entry in entries:
            self._place(entry, page)
        for chain in page.touched:
            self._settle(chain, page)
        return self._open(page)

    def retry(self, quarantined: Sequence[Quarantined]) -> Page[T]:
        """Judge quarantined entries again, after an epoch, a log, the version or the clock has changed."""
        page = _OpenPage()
        for kept in sorted(quarantined, key=_seq_of):
            if not kept.admitted:
                self._place(kept.entry, page)
            elif isinstance(checked := self._screen(kept.entry), QuarantineReason):
                page.refused[kept.entry.seq] = Quarantined(kept.entry, checked, admitted=True)
            else:
                page.admitted.append((checked[0], (kept.entry, checked[1])))
        for chain in page.touched:
            self._settle(chain, page)
        return self._open(page)

    def _place(self, entry: Entry, page: _OpenPage) -> None:
        checked = self._screen(entry)
        if isinstance(checked, QuarantineReason):
            page.refuse(entry, checked)
            return
        chain, envelope = checked
        page.touched[chain] = None
        link = (entry, envelope)
        if chain.extend(link):
            return
        self._settle(chain, page)
        reason = chain.restart(link)
        if reason is not None:
            page.refuse(entry, reason)

    def _screen(self, entry: Entry) -> tuple[DeviceChain, Envelope] | QuarantineReason:
        """Make the checks that need no other envelope, in their order."""
        try:
            envelope = parse(entry.envelope)
        except MalformedEnvelopeError:
            return _reason_of_layout(entry.envelope, self._space)
        header = envelope.header
        if _is_malformed(header):
            return QuarantineReason.LAYOUT
        passport = (header.device, header.kind, header.epoch, header.log_head)
        known = self._passes.get(passport)
        if known is None or header.space != self._space:
            checked = self._check_author(header)
            if isinstance(checked, QuarantineReason):
                return checked
            known = self._passes[passport] = checked
        # A counter is each envelope's own, so cutoffs are looked at for each.
        if known.cut is not None and known.cut.is_cut_off(
            header.device, header.counter, header.kind, known.seq, is_revoked=known.is_revoked
        ):
            return QuarantineReason.CUTOFF
        if not known.is_granted:
            return QuarantineReason.ROLE
        chain = self._chains.get(header.device)
        if chain is None:
            account, sign_pk = self._authors[header.device]
            chain = DeviceChain(header.device, account, sign_pk, self._heads.get(header.device))
            self._chains[header.device] = chain
        return chain, envelope

    def _check_author(self, header: Header) -> QuarantineReason | _Pass:
        """Return what holds for every such envelope of the author, or why none of them can count."""
        if header.space != self._space:
            return QuarantineReason.SPACE
        if header.kind not in _STORED_KINDS:
            return QuarantineReason.KIND
        if header.epoch not in self._log.epochs:
            return QuarantineReason.EPOCH
        author = self._authors.get(header.device)
        if author is None:
            return QuarantineReason.DEVICE
        # The role is that of the log's head which the author knew: so every reader comes to the same verdict.
        seq = self._log.head_prefixes.get(header.log_head)
        if seq is None:
            return QuarantineReason.LOG_HEAD
        member = self._log.record_of(author[0])
        assert member is not None
        role = member.role_at(seq)
        return _Pass(
            seq=seq,
            is_granted=role is not None and role.may_write(header.kind),
            cut=member if member.cutoffs else None,
            is_revoked=header.device in self._accounts[author[0]].retired,
        )

    def _settle(self, chain: DeviceChain, page: _OpenPage) -> None:
        vouched, unvouched = chain.settle()
        for entry, _ in unvouched:
            page.refuse(entry, QuarantineReason.SIGNATURE)
        if vouched:
            assert chain.head is not None
            self._heads[chain.device] = page.heads[chain.device] = chain.head
            page.admitted += [(chain, link) for link in vouched]

    def _open(self, page: _OpenPage) -> Page[T]:
        keys: dict[Epoch, EpochKeys | None] = {}
        opened: list[Opened[T]] = []
        refused = page.refused
        for chain, (entry, envelope) in page.admitted:
            refused.pop(entry.seq, None)
            epoch = envelope.header.epoch
            if epoch not in keys:
                keys[epoch] = self._keys_of(epoch)
            outcome = self._open_one(chain, entry, envelope, keys[epoch])
            if isinstance(outcome, QuarantineReason):
                refused[entry.seq] = Quarantined(entry, outcome, admitted=True)
            else:
                opened.append(outcome)
        opened.sort(key=_source_seq)
        return Page(opened, sorted(refused.values(), key=_seq_of), page.heads)

    def _open_one(
        self, chain: DeviceChain, entry: Entry, envelope: Envelope, keys: EpochKeys | None
    ) -> Opened[T] | QuarantineReason:
        if keys is None:
            return QuarantineReason.KEY
        try:
            padded = open_padded(envelope, keys)
        except OpenError:
            return QuarantineReason.AEAD
        try:
            payload = unpad(padded)
        except OpenError:
            return QuarantineReason.PADDING
        header = envelope.header
        source = Source(
            entry.seq,
            entry.received_ms,
            header.kind,
            header.epoch,
            chain.account,
            header.device,
            header.counter,
            envelope.id,
        )
        try:
            return Opened(source, self._decode(payload, source))
        except TwinlockError as exc:
            return _reason_of_content(exc)


class _Pass(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was found of an author's envelopes of one kind and epoch that name one head of the log.

    `cut` is the author's record where it has cutoffs, None for the common case that it has none.
    """

    seq: int
    is_granted: bool
    cut: Member | None
    is_revoked: bool


class _OpenPage:
    """A page while it is being judged."""

    __slots__ = ("admitted", "heads", "refused", "touched")

    def __init__(self) -> None:
        self.touched: dict[DeviceChain, None] = {}
        self.admitted: list[tuple[DeviceChain, Link]] = []
        self.refused: dict[Seq, Quarantined] = {}
        self.heads: dict[DeviceId, ChainHead] = {}

    def refuse(self, entry: Entry, reason: QuarantineReason) -> None:
        self.refused[entry.seq] = Quarantined(entry, reason)


def _is_malformed(header: Header) -> bool:
    if header.kind is Kind.SIGNAL:
        return False
    return header.session != 0 or header.counter == 0 or (header.kind is Kind.DROP and header.nonce != _NO_NONCE)


def _reason_of_layout(data: bytes, space: SpaceId) -> QuarantineReason:
    if data and data[0] > VERSION:
        return QuarantineReason.VERSION
    if len(data) < ENVELOPE_BYTES_MIN:
        return QuarantineReason.LAYOUT
    declared = int.from_bytes(data[HEADER_BYTES - 4 : HEADER_BYTES], "big")
    is_whole = declared == len(data) - HEADER_BYTES - SIGNATURE_BYTES and len(data) <= ENVELOPE_BYTES_MAX
    if data[0] != VERSION or data[2:4] != _NO_FLAGS or not is_whole:
        return QuarantineReason.LAYOUT
    # Only the kind is left to be wrong, and the space comes before it.
    return QuarantineReason.KIND if data[8:24] == space else QuarantineReason.SPACE


def _reason_of_content(error: TwinlockError) -> QuarantineReason:
    match error:
        case ClockSkewError():
            return QuarantineReason.TIMESTAMP
        case UpdateNeededError():
            return QuarantineReason.VERSION
        case LimitExceededError() | DocumentTooLargeError():
            return QuarantineReason.LIMIT
    return QuarantineReason.DECODING


def _seq_of(quarantined: Quarantined) -> Seq:
    return quarantined.entry.seq


def _source_seq(opened: Opened[T]) -> Seq:
    return opened.source.seq
