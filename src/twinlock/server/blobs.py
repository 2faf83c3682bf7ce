"""The calls about blobs, and who may put and get their parts. See spec/protocol.md, section 9."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from twinlock.contracts import BlobStore
from twinlock.errors import (
    BlobConflictError,
    BlobIncompleteError,
    InvalidCallError,
    LimitExceededError,
    NotFoundError,
    RevisionError,
    RoleError,
    SpaceFullError,
)
from twinlock.ids import ID_BYTES, AccountId, BlobId, DeviceId, SpaceId
from twinlock.protocol.blob_calls import (
    BeginBlob,
    BeginBlobResult,
    BlobInfo,
    ListBlobs,
    ListBlobsResult,
    NameBlob,
)
from twinlock.protocol.calls import Nothing
from twinlock.protocol.envelope import Kind
from twinlock.protocol.limits import BLOB_BYTES_MAX, BLOB_PAGE_COUNT_MAX
from twinlock.protocol.space_log import SpaceLogState
from twinlock.server.authorize import Authority, author_of, device_of
from twinlock.server.blob_book import BlobBook, BlobRecord, HeldBlob, SpaceUse
from twinlock.server.blob_due import BlobDue
from twinlock.server.blob_places import blob_place, check_sealed_bytes, part_bytes, part_of, part_place, parts_count
from twinlock.server.methods import Method
from twinlock.server.peer import Peer
from twinlock.server.registry import SpaceRegistry
from twinlock.server.settings import Settings
from twinlock.server.standing import check_member


class Part(msgspec.Struct, frozen=True):
    """A part that somebody may put or get: of which blob, its name in the store, and how many bytes it has."""

    account: AccountId
    device: DeviceId
    space: SpaceId
    blob: BlobId
    number: int
    place: str
    part_bytes: int


class Blobs:
    """Answers the calls, and says of each part who may put or get it."""

    __slots__ = ("_authority", "_book", "_due", "_now_ms", "_registry", "_settings", "_store")

    def __init__(
        self,
        store: BlobStore,
        book: BlobBook,
        due: BlobDue,
        authority: Authority,
        registry: SpaceRegistry,
        settings: Settings,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._book = book
        self._due = due
        self._authority = authority
        self._registry = registry
        self._settings = settings
        self._now_ms = now_ms

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "blob.begin": Method(BeginBlob, self._begin),
            "blob.finish": Method(NameBlob, self._finish),
            "blob.delete": Method(NameBlob, self._delete),
            "blob.restore": Method(NameBlob, self._restore),
            "blob.info": Method(NameBlob, self._info),
            "blob.list": Method(ListBlobs, self._list),
        }

    # Parts, over HTTP

    async def to_put(self, account: AccountId, device: DeviceId, space: SpaceId, blob: BlobId, number: int) -> Part:
        """Return a part that a device may put now.

        Raises:
            DeviceRevokedError, UnknownDeviceError, RoleError, RemovedError, ShreddedError, ApprovalPendingError,
            UnknownSpaceError: it may not.
            NotFoundError: the blob was not begun, or has no such part.
            BlobConflictError: the blob is finished or deleted.
        """
        await self._check_device(account, device)
        await self._as_writer(account, space)
        held = await self._held(space, blob)
        self._check_open(held, device)
        if held.record.is_finished:
            raise BlobConflictError("it is finished")
        return _part(account, device, space, held, number)

    async def to_get(self, account: AccountId, device: DeviceId, space: SpaceId, blob: BlobId, number: int) -> Part:
        """Return a part that a device may get now; raises as `to_put`."""
        await self._check_device(account, device)
        await self._as_reader(account, space)
        held = await self._held(space, blob)
        if not held.record.is_finished or held.record.deleted_ms:
            raise NotFoundError("the blob is not finished" if not held.record.is_finished else "the blob is deleted")
        return _part(account, device, space, held, number)

    async def put(self, part: Part, data: bytes) -> None:
        """Store a part whose bytes took a while to come; raises as `to_put`, and StoreError."""
        await self.to_put(part.account, part.device, part.space, part.blob, part.number)
        await self._store.put(part.place, data)
        held = await self._book.get(part.space, part.blob)
        if held is None or held.record.is_ending:
            # The blob was deleted meanwhile, perhaps with its space: this part came too late to be found there.
            await self._store.delete(part.place)
            raise NotFoundError("the blob is deleted")

    async def get(self, part: Part, first: int, size: int) -> bytes:
        """Return bytes of a part.

        Raises:
            NotFoundError: the store does not have them.
            StoreError: it cannot be read.
        """
        data = await self._store.get(part.place, first, size)
        if data is None or len(data) != size:
            raise NotFoundError("the part is missing")
        return data

    # Calls

    async def _begin(self, peer: Peer, request: BeginBlob) -> BeginBlobResult:
        author = device_of(peer)
        rules = await self._as_writer(author.account, request.space)
        _check_id(request.blob)
        if request.epoch not in rules.epochs:
            raise InvalidCallError("an unknown epoch")
        self._check_size(request.sealed_bytes)
        held = await self._book.get(request.space, request.blob)
        if held is None:
            record = BlobRecord(request.epoch, request.sealed_bytes, self._now_ms(), author.device)
            if await self._add(request.space, request.blob, record):
                return BeginBlobResult([], is_finished=False)
            held = await self._held(request.space, request.blob)
        self._check_open(held, author.device)
        if (held.record.epoch, held.record.sealed_bytes) != (request.epoch, request.sealed_bytes):
            raise BlobConflictError("it was begun with another epoch or size")
        if held.record.is_finished:
            return BeginBlobResult(list(range(parts_count(held.record.sealed_bytes))), is_finished=True)
        return BeginBlobResult(sorted(await self._parts(request.space, held)), is_finished=False)

    async def _finish(self, peer: Peer, request: NameBlob) -> Nothing:
        author = device_of(peer)
        await self._as_writer(author.account, request.space)
        held = await self._held(request.space, request.blob)
        self._check_open(held, author.device)
        if not held.record.is_finished:
            missing = parts_count(held.record.sealed_bytes) - len(await self._parts(request.space, held))
            if missing:
                raise BlobIncompleteError(f"{missing} parts")
            await self._replace(request.space, held, msgspec.structs.replace(held.record, is_finished=True))
        return Nothing()

    async def _delete(self, peer: Peer, request: NameBlob) -> Nothing:
        await self._as_writer(device_of(peer).account, request.space)
        held = await self._held(request.space, request.blob)
        if not held.record.deleted_ms:
            await self._due.note(request.space, request.blob)
            await self._replace(request.space, held, msgspec.structs.replace(held.record, deleted_ms=self._now_ms()))
        return Nothing()

    async def _restore(self, peer: Peer, request: NameBlob) -> Nothing:
        account = device_of(peer).account
        rules = await self._rules(account, request.space)
        if not rules.members[account].role.may_admit:
            raise RoleError("an owner or admin takes a deletion back")
        held = await self._held(request.space, request.blob)
        if held.record.deleted_ms:
            await self._due.note(request.space, request.blob)
            await self._replace(request.space, held, msgspec.structs.replace(held.record, deleted_ms=0))
        return Nothing()

    async def _info(self, peer: Peer, request: NameBlob) -> BlobInfo:
        await self._as_reader(device_of(peer).account, request.space)
        return (await self._held(request.space, request.blob)).record.info(request.blob)

    async def _list(self, peer: Peer, request: ListBlobs) -> ListBlobsResult:
        await self._as_reader(device_of(peer).account, request.space)
        if len(request.after) not in (0, ID_BYTES):
            raise InvalidCallError("ids have 16 bytes")
        use = await self._book.use(request.space)
        found = await self._book.page(request.space, request.after, BLOB_PAGE_COUNT_MAX + 1, use)
        infos = [held.record.info(held.blob) for held in found[:BLOB_PAGE_COUNT_MAX]]
        has_more = len(found) > BLOB_PAGE_COUNT_MAX
        return ListBlobsResult(infos, has_more, use.live_bytes, self._settings.space_blob_bytes_max)

    # Checks

    async def _check_device(self, account: AccountId, device: DeviceId) -> None:
        author_of(await self._authority.account(account), device)

    async def _rules(self, account: AccountId, space: SpaceId) -> SpaceLogState:
        """Return a space's rules for one of its members."""
        if len(space) != ID_BYTES:
            raise InvalidCallError("ids have 16 bytes")
        rules = (await self._registry.current(space)).sequencer.rules
        check_member(rules, account)
        return rules

    async def _as_writer(self, account: AccountId, space: SpaceId) -> SpaceLogState:
        rules = await self._rules(account, space)
        if not rules.members[account].role.may_write(Kind.SNAPSHOT):
            raise RoleError("owners, admins and editors write blobs")
        return rules

    async def _as_reader(self, account: AccountId, space: SpaceId) -> None:
        rules = await self._rules(account, space)
        if not rules.members[account].role.may_lease:
            raise RoleError("senders read nothing")

    async def _held(self, space: SpaceId, blob: BlobId) -> HeldBlob:
        _check_id(blob)
        held = await self._book.get(space, blob)
        if held is None or held.record.is_ending:
            raise NotFoundError("no such blob")
        return held

    def _check_open(self, held: HeldBlob, device: DeviceId) -> None:
        """Check that a device may go on with a blob: who began it, since nobody else has what belongs to its key."""
        if held.record.deleted_ms:
            raise BlobConflictError("it is deleted")
        if held.record.device != device:
            raise RoleError("another device began this blob")

    def _check_size(self, sealed_bytes: int) -> None:
        check_sealed_bytes(sealed_bytes)
        largest = min(self._settings.blob_bytes_max or BLOB_BYTES_MAX, BLOB_BYTES_MAX)
        if sealed_bytes > largest:
            raise LimitExceededError(f"a blob of {sealed_bytes} bytes, {largest} at most")

    def _check_room(self, use: SpaceUse) -> None:
        settings, room = self._settings, self._settings.space_blob_bytes_max
        if settings.space_blobs_max and use.count > settings.space_blobs_max:
            raise SpaceFullError(f"the space has {settings.space_blobs_max} blobs")
        # What is deleted takes room until it is gone; as much again, so that deleting helps at once.
        if room and (use.live_bytes > room or use.live_bytes + use.deleted_bytes > 2 * room):
            raise SpaceFullError(f"files have {room} bytes here")

    # The book

    async def _add(self, space: SpaceId, blob: BlobId, record: BlobRecord) -> bool:
        """Note a new blob; return False if somebody else has begun it meanwhile."""
        # Noted first: what is begun is looked at again, whatever happens.
        await self._due.note(space, blob)
        try:
            await self._book.add(space, blob, record, self._check_room)
        except RevisionError:
            return False
        return True

    async def _replace(self, space: SpaceId, held: HeldBlob, record: BlobRecord) -> None:
        try:
            await self._book.replace(space, held, record)
        except RevisionError as exc:
            raise BlobConflictError("somebody else has just changed it") from exc

    async def _parts(self, space: SpaceId, held: HeldBlob) -> set[int]:
        """Return which parts are there in full."""
        found, sealed_bytes = set(), held.record.sealed_bytes
        async for stored in self._store.list(blob_place(space, held.blob)):
            number = part_of(stored.name)
            is_part = number is not None and number < parts_count(sealed_bytes)
            if number is not None and is_part and stored.size == part_bytes(sealed_bytes, number):
                found.add(number)
        return found


def _part(account: AccountId, device: DeviceId, space: SpaceId, held: HeldBlob, number: int) -> Part:
    sealed_bytes = held.record.sealed_bytes
    if not 0 <= number < parts_count(sealed_bytes):
        raise NotFoundError("the blob has no such part")
    place = part_place(space, held.blob, number)
    return Part(account, device, space, held.blob, number, place, part_bytes(sealed_bytes, number))


def _check_id(blob: BlobId) -> None:
    if len(blob) != ID_BYTES:
        raise InvalidCallError("ids have 16 bytes")
