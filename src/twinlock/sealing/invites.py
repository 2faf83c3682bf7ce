"""Invites: a link whose secret gives two keys, one that admits, one to which A is wrapped. See spec/sealing.md, 4."""

from __future__ import annotations

import base64
import binascii

import msgspec

from twinlock.errors import InviteError
from twinlock.ids import ID_BYTES, AccountId, SpaceId
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.proofs import invite_open_message, join_message
from twinlock.protocol.signed_log import FieldValue, encode_body
from twinlock.protocol.space_log import Role, SpaceLogState, invite_id_of
from twinlock.sealing.derive import kdf
from twinlock.sealing.identity import AccountKeys, KeyPairs, sign_entry
from twinlock.sealing.suite import SECRET_BYTES, Entropy

MARK = "tl1"
"""What the fragment of a link begins with."""


class InviteLink(msgspec.Struct, frozen=True):
    """What a link says. `repr` hides the secret; `str` is what goes into the fragment of the link."""

    space: SpaceId
    invite: bytes
    secret: bytes

    def __str__(self) -> str:
        return ".".join((MARK, _text(self.space), _text(self.invite), _text(self.secret)))

    def __repr__(self) -> str:
        return "InviteLink(hidden)"


class InviteTerms(msgspec.Struct, frozen=True):
    """What an invite gives: the role, until when and how often, and whether an admin confirms each."""

    role: Role
    expires_ms: int
    uses: int = 1
    needs_approval: bool = False


class InviteKeys(KeyPairs):
    """The keys that follow from an invite's secret."""

    __slots__ = ("id",)

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.id = invite_id_of(self.sign_pk, self.kem_pk)

    @classmethod
    def of(cls, space: SpaceId, secret: bytes) -> InviteKeys:
        """Derive the keys of a space's invite from its secret."""
        return cls(kdf(secret, space, "inv-sign") + kdf(secret, space, "inv-kem"))


def make_invite(space: SpaceId, entropy: Entropy) -> InviteLink:
    """Draw the secret of a new invite."""
    secret = entropy(SECRET_BYTES)
    return InviteLink(space, InviteKeys.of(space, secret).id, secret)


def parse_link(text: str) -> InviteLink:
    """Read a link, or its fragment alone.

    Raises:
        InviteError: it is none, or its parts do not fit together.
    """
    parts = text.strip().rpartition("#")[2].split(".")
    if len(parts) != 4 or parts[0] != MARK:
        raise InviteError("this is no invite link")
    space, invite, secret = (_octets(part) for part in parts[1:])
    if (len(space), len(invite), len(secret)) != (ID_BYTES, ID_BYTES, SECRET_BYTES):
        raise InviteError("the link is cut short or altered")
    link = InviteLink(SpaceId(space), invite, secret)
    if InviteKeys.of(link.space, secret).id != invite:
        raise InviteError("the link was altered")
    return link


def invite_entry(signer: AccountKeys, state: SpaceLogState, keys: InviteKeys, terms: InviteTerms) -> SignedEntry:
    """Open an invite."""
    fields: dict[str, FieldValue] = {
        "by": signer.account,
        "id": keys.id,
        "sign": keys.sign_pk,
        "kem": keys.kem_pk,
        "role": str(terms.role),
        "expires": terms.expires_ms,
        "uses": terms.uses,
        "approve": int(terms.needs_approval),
    }
    return sign_entry(signer, state.space, state.position, encode_body("invite", fields))


def uninvite_entry(signer: AccountKeys, state: SpaceLogState, invite: bytes) -> SignedEntry:
    """Withdraw an invite."""
    body = encode_body("uninvite", {"by": signer.account, "id": invite})
    return sign_entry(signer, state.space, state.position, body)


def join_entry(joiner: AccountKeys, state: SpaceLogState, keys: InviteKeys) -> SignedEntry:
    """Join by an invite, with the signatures of both the account and the invite."""
    message = join_message(state.space, keys.id, joiner.account, joiner.sign_pk, joiner.kem_pk)
    fields: dict[str, FieldValue] = {
        "by": joiner.account,
        "invite": keys.id,
        "sign": joiner.sign_pk,
        "kem": joiner.kem_pk,
        "isig": keys.sign.sign(message),
    }
    return sign_entry(joiner, state.space, state.position, encode_body("join", fields))


def invite_proof(keys: InviteKeys, server_id: bytes, space: SpaceId, account: AccountId) -> bytes:
    """Return what shows a server that an account holds an invite's secret."""
    return keys.sign.sign(invite_open_message(server_id, space, keys.id, account))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InviteError("the link holds letters that no link has") from exc
