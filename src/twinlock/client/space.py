"""A space as an application names it."""

from __future__ import annotations

from typing import Any, overload

from twinlock.client.batch import WriteBatch
from twinlock.client.collection import Collection
from twinlock.client.endings import EndReason
from twinlock.client.files import Files
from twinlock.client.invites import HOUR_MS, ApplicantInfo, InviteInfo
from twinlock.client.members import MemberInfo
from twinlock.client.sharing import Sharing
from twinlock.client.snapshots import Model
from twinlock.client.space_handle import SpaceHandle
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.document.schema import Schema
from twinlock.errors import InvalidCallError
from twinlock.protocol.space_log import Role
from twinlock.replica.sender_writes import own_prefix
from twinlock.sealing.invites import InviteTerms


class Space:
    """The unit of sharing, of keys and of sync: a set of collections."""

    def __init__(self, handle: SpaceHandle) -> None:
        self._handle = handle

    @property
    def id(self) -> str:
        """The space's id, in hex."""
        return self._handle.id.hex()

    @property
    def title(self) -> str | None:
        """The space's name; None while it is locked."""
        return self._handle.runtime.title

    @property
    def locked(self) -> bool:
        """Whether the lease has ended: reading waits for the server, writing goes on."""
        return self._handle.runtime.is_locked

    @property
    def own_prefix(self) -> str:
        """What the ids of all documents begin with that this account may write as a sender: its own id, in hex."""
        return own_prefix(self._runtime.keyring.account)

    @overload
    def collection(self, name: str) -> Collection[dict[str, Any]]: ...

    @overload
    def collection(self, name: str, model: type[Model] | Schema[Model]) -> Collection[Model]: ...

    def collection(self, name: str, model: Any = None) -> Collection[Any]:
        """Return a collection, typed if a `msgspec.Struct`, dataclass, pydantic model or `Schema` is given."""
        if model is None:
            return Collection(self._handle, name)
        return Collection(self._handle, name, model if isinstance(model, Schema) else Schema(model))

    @property
    def files(self) -> Files:
        """The files of this space: put, get, stream, save, list, delete."""
        return Files(self._handle, self._handle.files)

    def batch(self) -> WriteBatch:
        """Begin a batch of writes that happen all at once."""
        return WriteBatch(self._handle)

    # Members. Whoever changes them has called `db.unlock` in the last 15 minutes (else SudoNeededError) and is online
    # (else OfflineError). Every change is safe to repeat when its answer was lost. Members are named by id or name.

    async def members(self) -> list[MemberInfo]:
        """Return the members, their roles, and whether their safety codes were compared on this device."""
        return await self._sharing.members.all(self._runtime)

    async def safety_code(self, member: str) -> str:
        """Return 60 digits, the same on both sides: whoever hears others is talking to somebody else.

        Raises:
            NotFoundError: there is no such member.
        """
        return await self._sharing.members.safety_code(self._runtime, member)

    async def verify(self, member: str, code: str) -> None:
        """Compare the digits that a member reads out; spaces do not matter.

        Raises:
            SafetyCodeError: they are others.
        """
        await self._sharing.members.verify(self._runtime, member, code)

    async def set_role(self, member: str, role: Role | str) -> None:
        """Give a member another role: owner, admin, editor, reader or sender.

        Who may read no more has the space rotated at once.

        Raises:
            RoleError: this account may not do that.
            LastOwnerError: it is the last owner.
        """
        await self._sharing.members.set_role(self._runtime, member, _role(role))
        if self._runtime.keyring.log.wants_rotation:
            await self._sharing.settings.rotate(self._runtime, only_if_wanted=True)

    async def remove(self, member: str) -> None:
        """Remove a member, or turn an applicant away; nothing that is written from then on opens for it.

        Raises:
            RoleError: this account may not do that.
        """
        await self._sharing.members.remove(self._runtime, member)

    async def leave(self) -> None:
        """Leave the space; its data on this account's devices is deleted.

        Raises:
            LastOwnerError: this is the last owner.
        """
        if self._runtime.end is None or self._runtime.end.reason is not EndReason.LEFT:
            await self._sharing.members.leave(self._runtime)

    # Invites

    async def invite(
        self,
        role: Role | str = Role.EDITOR,
        *,
        hours: float = 72,
        uses: int = 1,
        approve: bool = False,
        app_url: str | None = None,
    ) -> str:
        """Return a link that lets whoever opens it join. It is shown once: its secret is kept nowhere.

        Args:
            role: editor, reader or sender.
            hours: how long the link holds.
            uses: how many may join by it.
            approve: whether an owner or admin confirms each with `approve` before anything opens.
            app_url: where the link leads, by default the application's address, or else the server's.

        Raises:
            RoleError: this account may not invite, or nobody is invited with that role.
            InvalidCallError: there is no such role, or it cannot have so many uses.
        """
        expires_ms = self._handle.now_ms() + int(hours * HOUR_MS)
        terms = InviteTerms(_role(role), expires_ms, uses, approve)
        return await self._sharing.invites.make(self._runtime, terms, app_url)

    def invites(self) -> list[InviteInfo]:
        """Return the invites that are open."""
        return self._sharing.invites.all(self._runtime)

    async def uninvite(self, link_or_id: str) -> None:
        """Withdraw an invite; one that is not open any more is fine.

        Raises:
            InviteError: this is neither a link of this space nor an invite's id.
        """
        await self._sharing.invites.withdraw(self._runtime, link_or_id)

    async def applicants(self) -> list[ApplicantInfo]:
        """Return who joined by an invite that needs approval, and waits for it."""
        return await self._sharing.invites.applicants(self._runtime)

    async def approve(self, member: str) -> None:
        """Confirm an applicant, who becomes a member; `remove` turns it away.

        Raises:
            NotFoundError: nobody of that id or name has applied.
        """
        await self._sharing.invites.approve(self._runtime, member)

    # Keys and settings

    @property
    def rotation_wanted(self) -> bool:
        """Whether the space needs a new epoch, which an unlocked owner or admin opens by itself."""
        return self._runtime.rotation_wanted

    async def rotate(self) -> None:
        """Open a new epoch: what is written from then on takes keys that no earlier copy holds."""
        await self._sharing.settings.rotate(self._runtime)

    async def shred(self) -> None:
        """Have the space's service keys destroyed, for good: no replica, backup or device opens it any more.

        Raises:
            RoleError: only an owner does this.
        """
        if self._runtime.end is None or self._runtime.end.reason is not EndReason.SHREDDED:
            await self._sharing.settings.shred(self._runtime)

    async def rename(self, title: str) -> None:
        """Give the space another name."""
        await self._sharing.settings.rename(self._runtime, title)

    async def set_lease_hours(self, lease_hours: int) -> None:
        """Say how long a device may read without the server; with 0 no lease is ever stored."""
        await self._sharing.settings.set_lease_hours(self._runtime, lease_hours)

    async def set_offline_needs(self, needs: str) -> None:
        """Say what a device must offer to read offline after a restart: `keystore`, or nothing (an empty string)."""
        await self._sharing.settings.set_offline_needs(self._runtime, needs)

    @property
    def _runtime(self) -> SpaceRuntime:
        return self._handle.runtime

    @property
    def _sharing(self) -> Sharing:
        return self._handle.sharing


def _role(role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise InvalidCallError(f"{role!r} is no role; roles are {', '.join(Role)}") from None
