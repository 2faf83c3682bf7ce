"""The calls about devices: pairing, names, revocation, and sign-in by the application's own issuer.

See spec/sealing.md, section 2, and spec/protocol.md, section 6.
"""

from __future__ import annotations

import msgspec

from twinlock.ids import AccountId, DeviceId
from twinlock.protocol.calls import SignedEntry, Unlocker


class AskPairing(msgspec.Struct, frozen=True):
    """`pairing.ask` (anonymous): a new device leaves its public keys, to be approved within 10 minutes.

    Asking again with the same keys prolongs the request. The answer to it is fetched by `pairing.take`.
    """

    sign_pk: bytes
    kem_pk: bytes


class AskPairingResult(msgspec.Struct, frozen=True):
    """The id that the keys certify, and until when the request stands, by the server's clock."""

    device: DeviceId
    expires_ms: int


class FindPairing(msgspec.Struct, frozen=True):
    """`pairing.find`: the keys of the device whose id begins with `prefix` (at least 10 bytes)."""

    prefix: bytes


class FindPairingResult(msgspec.Struct, frozen=True):
    """The public keys of a device that waits; the approver recomputes its id from them."""

    sign_pk: bytes
    kem_pk: bytes


class ApprovePairing(msgspec.Struct, frozen=True):
    """`pairing.approve`: the account's keys, sealed to a device that the account's log certifies by now."""

    device: DeviceId
    sealed: bytes


class TakePairing(msgspec.Struct, frozen=True):
    """`pairing.take` (anonymous): fetch the answer to an own request.

    `signature` is the new device's, over `pairing_take_message`. The request is forgotten when the device first opens
    a session of its own, or at its end: until then a lost reply can be asked for again.
    """

    device: DeviceId
    signature: bytes


class TakePairingResult(msgspec.Struct, frozen=True):
    """Nothing yet (`account` empty), or the account, its name, its keys sealed to the device, and its log."""

    account: bytes = b""
    name: str = ""
    sealed: bytes = b""
    entries: list[SignedEntry] = []


class Devices(msgspec.Struct, frozen=True):
    """`account.devices`: what the server knows of the account's devices."""


class DeviceNote(msgspec.Struct, frozen=True):
    """When a device was here last (0: never), whether it is now, and its name, sealed to the account."""

    device: DeviceId
    last_seen_ms: int
    is_online: bool
    name: bytes


class DevicesResult(msgspec.Struct, frozen=True):
    """One note for each device of the account's log, revoked ones too."""

    devices: list[DeviceNote]


class PutDeviceName(msgspec.Struct, frozen=True):
    """`device.put_name`: the name of a device of this account, sealed to the account."""

    device: DeviceId
    name: bytes


class ReadRevocation(msgspec.Struct, frozen=True):
    """`device.revocation` (anonymous): the account's log, given only for a device that it revokes."""

    account: AccountId
    device: DeviceId


class ReadRevocationResult(msgspec.Struct, frozen=True):
    """The account's log, by which a device verifies that its own account has revoked it."""

    entries: list[SignedEntry]


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """A new account key on its way to one of the account's devices."""

    device: DeviceId
    sealed: bytes


class Rekem(msgspec.Struct, frozen=True):
    """`account.rekem`: replace the account's `kem` key, all at once.

    `entries` grow the account's log after `expect_seq` and end with a `rekem` (a `revoke` may stand before it);
    `parcels` bring the key to the devices that stay; `unlockers` take the place of those that wrap the old key, so
    that old kits open nothing any more, or end without another if `ends` names their kind. All of it holds from the
    moment when the log has the entries; repeating the call after a lost reply is fine. `signature` is the account's,
    over `rekem_message`: nobody attaches a parcel or an unlocker of their own to these entries.
    """

    expect_seq: int
    entries: list[SignedEntry]
    parcels: list[Parcel]
    unlockers: list[Unlocker]
    ends: list[str]
    signature: bytes


class TakeParcel(msgspec.Struct, frozen=True):
    """`account.parcel`: the parcel for the session's own device."""


class TakeParcelResult(msgspec.Struct, frozen=True):
    """The account's new `kem` key, sealed to the device; empty if there is none."""

    sealed: bytes


class OpenToken(msgspec.Struct, frozen=True):
    """`token.open` (anonymous): sign in by a token of the application's issuer, in place of a password."""

    token: str

    def __repr__(self) -> str:
        return "OpenToken(hidden)"


class OpenTokenResult(msgspec.Struct, frozen=True):
    """The account of the token's subject, its name and log; all empty if the subject has none yet.

    A token opens no keys: they come from the kit, or by approval of another device.
    """

    account: bytes = b""
    name: str = ""
    entries: list[SignedEntry] = []


class RefreshToken(msgspec.Struct, frozen=True):
    """`session.refresh`: a newer token for this session, which otherwise ends with the one it began with."""

    token: str

    def __repr__(self) -> str:
        return "RefreshToken(hidden)"
