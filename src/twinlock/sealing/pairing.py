"""How a device is approved by another one, and what an account's devices send one another. See spec/sealing.md, 2.

A new device shows a code: the first 80 bits of its id, by which its public keys certify themselves. The old device
seals the account's keys to them; both then show the same digits, so that neither can be led into another's account.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.errors import LimitExceededError, OpenError, PairingRefusedError, PairingUnknownError
from twinlock.ids import ID_BYTES, AccountId, DeviceId
from twinlock.protocol import hpke
from twinlock.protocol.account_log import AccountState, device_id_of
from twinlock.protocol.labels import label
from twinlock.protocol.signed_log import KEY_BYTES
from twinlock.sealing.boxes import open_box, seal_box
from twinlock.sealing.derive import kdf
from twinlock.sealing.digits import digits_of
from twinlock.sealing.identity import AccountKeys, DeviceKeys
from twinlock.sealing.letters import spell, unspell
from twinlock.sealing.padding import pad, unpad
from twinlock.sealing.suite import SECRET_BYTES, Entropy

CODE_LETTERS = 16
PREFIX_BYTES = 10
SERVER_ID_BYTES = 32
DEVICE_NAME_BYTES_MAX = 127
"""With its padding's mark a name takes 128 bytes, whatever its length."""

_QR_START = "twinlock:pair?"


class PairingTicket(msgspec.Struct, frozen=True):
    """What a code or a QR text says of the device that waits; a typed code names no server, and 80 bits of the id."""

    prefix: bytes
    server_id: bytes = b""
    origin: str = ""


def pairing_code(device: DeviceId) -> str:
    """Return the code that a new device shows, such as `7Q2M-...`."""
    return spell(int.from_bytes(device[:PREFIX_BYTES], "big"), CODE_LETTERS)


def pairing_qr(origin: str, server_id: bytes, device: DeviceId) -> str:
    """Return the text of the QR code that a new device shows; it holds the whole id, and where the device waits."""
    return f"{_QR_START}origin={origin}&server={_base64(server_id)}&device={_base64(device)}"


def parse_pairing(text: str) -> PairingTicket:
    """Read a typed code, or the text of a QR code.

    Raises:
        PairingUnknownError: it is neither.
    """
    if text.strip().startswith(_QR_START):
        return _parse_qr(text.strip().removeprefix(_QR_START))
    number = unspell(text, CODE_LETTERS)
    if number is None:
        raise PairingUnknownError("a code has 16 letters and digits")
    return PairingTicket(number.to_bytes(PREFIX_BYTES, "big"))


def check_device_keys(ticket: PairingTicket, sign_pk: bytes, kem_pk: bytes) -> DeviceId:
    """Return the id of the device that waits, made of the keys that the server told.

    Raises:
        PairingRefusedError: they are not the keys of the device that showed the code.
    """
    if len(sign_pk) != KEY_BYTES or not hpke.is_recipient(kem_pk):
        raise PairingRefusedError("what the server told are no keys")
    device = device_id_of(sign_pk, kem_pk)
    if not device.startswith(ticket.prefix):
        raise PairingRefusedError("the server told another device's keys")
    return device


def pairing_digits(account: AccountId, device: DeviceId) -> str:
    """Return the 60 digits that both screens show: the same only if the device came into this very account."""
    return digits_of("pair-digits", account + device)


def seal_account_keys(keys: AccountKeys, device: DeviceId, kem_pk: bytes) -> bytes:
    """Seal the account's keys to a new device, whose keys were checked."""
    return hpke.seal(kem_pk, keys.expose(), _pair_info(keys.account, device))


def open_account_keys(sealed: bytes, device_keys: DeviceKeys, state: AccountState) -> AccountKeys:
    """Open the account's keys on the new device, and check them against the account's signed log.

    Raises:
        PairingRefusedError: they are not for this device, or the log does not certify it, or has other keys.
    """
    if device_keys.device not in state.devices:
        raise PairingRefusedError("the account's log does not certify this device")
    try:
        keys = AccountKeys(hpke.open_sealed(device_keys.kem, sealed, _pair_info(state.account, device_keys.device)))
    except (OpenError, ValueError) as exc:
        raise PairingRefusedError("the account's keys do not open") from exc
    if keys.account != state.account or keys.kem_pk != state.kem_pk:
        raise PairingRefusedError("the keys are not those of the account's log")
    return keys


def seal_parcel(kem: X25519PrivateKey, account: AccountId, device: DeviceId, device_kem_pk: bytes) -> bytes:
    """Seal the account's new `kem` key to one of its devices."""
    return hpke.seal(device_kem_pk, kem.private_bytes_raw(), _rekem_info(account, device))


def open_parcel(sealed: bytes, device_keys: DeviceKeys, state: AccountState) -> X25519PrivateKey:
    """Open the account's new `kem` key, and check it against the signed `rekem` entry.

    Raises:
        OpenError: it is not for this device, or not the key that the account's log names.
    """
    raw = hpke.open_sealed(device_keys.kem, sealed, _rekem_info(state.account, device_keys.device))
    if len(raw) != SECRET_BYTES:
        raise OpenError
    kem = X25519PrivateKey.from_private_bytes(raw)
    if kem.public_key().public_bytes_raw() != state.kem_pk:
        raise OpenError
    return kem


def check_device_name(name: str) -> None:
    """Refuse a name that does not fit.

    Raises:
        LimitExceededError: it is too long.
    """
    size = len(name.encode())
    if size > DEVICE_NAME_BYTES_MAX:
        raise LimitExceededError(f"a device's name of {size} bytes, {DEVICE_NAME_BYTES_MAX} at most")


def seal_device_name(kem: X25519PrivateKey, account: AccountId, device: DeviceId, name: str, entropy: Entropy) -> bytes:
    """Seal a device's name to the account's own devices.

    Raises:
        LimitExceededError: it is too long.
    """
    check_device_name(name)
    return seal_box(_name_key(kem, account, device), pad(name.encode()), _name_aad(account, device), entropy)


def open_device_name(kem: X25519PrivateKey, account: AccountId, device: DeviceId, sealed: bytes) -> str:
    """Open a device's name.

    Raises:
        OpenError: it was not sealed under this key of the account, or is another device's.
    """
    data = unpad(open_box(_name_key(kem, account, device), sealed, _name_aad(account, device)))
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise OpenError from exc


def _parse_qr(query: str) -> PairingTicket:
    fields = dict(part.partition("=")[::2] for part in query.split("&"))
    try:
        origin, server_id, device = fields["origin"], _octets(fields["server"]), _octets(fields["device"])
    except (KeyError, ValueError) as exc:
        raise PairingUnknownError("the QR code is not one of Twinlock's") from exc
    if len(server_id) != SERVER_ID_BYTES or len(device) != ID_BYTES:
        raise PairingUnknownError("the QR code is not one of Twinlock's")
    return PairingTicket(device, server_id, origin)


def _pair_info(account: AccountId, device: DeviceId) -> bytes:
    return label("pair", account + device)


def _rekem_info(account: AccountId, device: DeviceId) -> bytes:
    return label("rekem", account + device)


def _name_key(kem: X25519PrivateKey, account: AccountId, device: DeviceId) -> bytes:
    return kdf(kem.private_bytes_raw(), account, "device-name", device)


def _name_aad(account: AccountId, device: DeviceId) -> bytes:
    return label("device-name", account + device)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc
