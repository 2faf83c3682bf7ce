"""The vault: recovery kits, unlockers, and records sealed under this device's StoreKey. See spec/sealing.md."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import NoReturn

import msgspec

from twinlock.errors import (
    CredentialsError,
    OpenError,
    PasswordError,
    RecoveryKitError,
    StoreDamagedError,
    StoreKeyError,
    WeakParametersError,
)
from twinlock.ids import AccountId
from twinlock.protocol.calls import Unlocker, UnlockerParamsResult
from twinlock.protocol.labels import label, prefixed, u32
from twinlock.protocol.names import account_name
from twinlock.sealing.boxes import open_box, seal_box
from twinlock.sealing.derive import kdf, normal, store_mac, stretch
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.letters import spell, unspell
from twinlock.sealing.suite import Entropy, StoreKey

PASSWORD_ITERATIONS_MIN = 1_000_000
"""What this client stretches passwords with, and the least that it accepts from a server."""

PASSWORD_ITERATIONS_MAX = 20_000_000
"""More would let a server keep a device busy for minutes."""

PASSWORD_LETTERS_MIN = 8
PASSWORD_OPENING_LETTERS_MIN = 14
SALT_BYTES = 16
KIND_PASSWORD = "password"  # noqa: S105  (the name of a kind, no secret)
KIND_KIT = "recovery_kit"
KDF_PASSWORD = "pbkdf2-sha256"  # noqa: S105  (the name of a derivation, no secret)
KDF_KIT = "hkdf-sha256"

_QR_START = "twinlock:kit?"
_KIT_BYTES = 16
_KIT_LETTERS = 28
_KIT_CHECK_BITS = 12


class RecoveryKit:
    """128 random bits that bring an account back. `str` gives the letters to show once; `repr` hides them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        assert len(raw) == _KIT_BYTES
        self._raw = raw

    @classmethod
    def make(cls, entropy: Entropy) -> RecoveryKit:
        """Make a new kit from chance."""
        return cls(entropy(_KIT_BYTES))

    @classmethod
    def parse(cls, text: str) -> RecoveryKit:
        """Read the 28 letters that a person typed, or the text of a kit's QR code.

        Case, spaces, hyphens and I, L, O in the letters do not matter.

        Raises:
            RecoveryKitError: a letter is wrong, missing or too many.
        """
        number = unspell(_letters_of(text), _KIT_LETTERS)
        if number is None:
            raise RecoveryKitError
        raw = (number >> _KIT_CHECK_BITS).to_bytes(_KIT_BYTES, "big")
        if number & ((1 << _KIT_CHECK_BITS) - 1) != _kit_check(raw):
            raise RecoveryKitError
        return cls(raw)

    def expose(self) -> bytes:
        """Return the 16 bytes, to be derived from."""
        return self._raw

    def __str__(self) -> str:
        number = int.from_bytes(self._raw, "big") << _KIT_CHECK_BITS | _kit_check(self._raw)
        return spell(number, _KIT_LETTERS)

    def __repr__(self) -> str:
        return "RecoveryKit(hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a recovery kit is not to be written anywhere")


def kit_qr(kit: RecoveryKit, origin: str, server_id: bytes, name: str) -> str:
    """Return the text of a kit's QR code: the letters, and the account and the server that they are for."""
    server = base64.urlsafe_b64encode(server_id).rstrip(b"=").decode("ascii")
    # Readers of such texts take a bare plus for a space.
    return f"{_QR_START}origin={origin}&server={server}&name={name.replace('+', '%2B')}&kit={kit}"


def _letters_of(text: str) -> str:
    _, starts, query = text.strip().partition(_QR_START)
    return dict(part.partition("=")[::2] for part in query.split("&")).get("kit", "") if starts else text


class UnlockKeys:
    """What an unlocker's secret gives: one key to sign in with, one that opens the account's keys."""

    __slots__ = ("auth_key", "wrap_key")

    def __init__(self, auth_key: bytes, wrap_key: bytes) -> None:
        self.auth_key = auth_key
        self.wrap_key = wrap_key

    def __repr__(self) -> str:
        return "UnlockKeys(hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("the keys of an unlocker are not to be written anywhere")


def kind_of(secret: str | RecoveryKit) -> str:
    """Return the kind of unlocker that a secret belongs to."""
    return KIND_KIT if isinstance(secret, RecoveryKit) else KIND_PASSWORD


def make_unlocker(
    secret: str | RecoveryKit,
    name: str,
    server_id: bytes,
    entropy: Entropy,
    account_keys: AccountKeys | None = None,
    iterations: int = PASSWORD_ITERATIONS_MIN,
) -> Unlocker:
    """Make the stored record of a password or a kit; with `account_keys` the secret also opens data.

    Raises:
        PasswordError: the password is too short for what it is to do.
    """
    kind, is_kit = kind_of(secret), isinstance(secret, RecoveryKit)
    if not is_kit:
        check_password(str(secret), opens_data=account_keys is not None)
    params = UnlockerParamsResult(
        kdf=KDF_KIT if is_kit else KDF_PASSWORD, salt=entropy(SALT_BYTES), iterations=0 if is_kit else iterations
    )
    keys = unlock(params, secret, name, server_id, iterations_min=iterations)
    wrapped = b""
    if account_keys is not None:
        aad = _wrapped_aad(kind, account_keys.account)
        wrapped = seal_box(keys.wrap_key, account_keys.expose(), aad, entropy)
    return Unlocker(kind, params.kdf, params.salt, params.iterations, keys.auth_key, wrapped)


def unlock(
    params: UnlockerParamsResult,
    secret: str | RecoveryKit,
    name: str,
    server_id: bytes,
    iterations_min: int = PASSWORD_ITERATIONS_MIN,
) -> UnlockKeys:
    """Derive the keys of an unlocker from its secret and the parameters that a server told.

    Raises:
        WeakParametersError: the server offers less than this client's minimum, or another derivation.
    """
    _check_params(params, kind_of(secret), iterations_min)
    place = server_id + prefixed(account_name(name).encode()) + prefixed(params.salt)
    salt = hashlib.sha256(label("unlocker-salt", place)).digest()
    if isinstance(secret, RecoveryKit):
        master = kdf(secret.expose(), salt, "recovery-kit")
    else:
        master = stretch(secret, salt, params.iterations)
    return UnlockKeys(kdf(master, salt, "auth"), kdf(master, salt, "wrap"))


def open_wrapped(keys: UnlockKeys, secret: str | RecoveryKit, account: AccountId, wrapped: bytes) -> AccountKeys:
    """Open the account's keys.

    Raises:
        CredentialsError: the secret is not the one they were wrapped by, or they are another account's.
    """
    try:
        opened = AccountKeys(open_box(keys.wrap_key, wrapped, _wrapped_aad(kind_of(secret), account)))
    except (OpenError, ValueError) as exc:
        raise CredentialsError from exc
    if not hmac.compare_digest(opened.account, account):
        raise CredentialsError
    return opened


def check_password(password: str, *, opens_data: bool = False) -> None:
    """Refuse a password that is too short for what it is to do.

    Raises:
        PasswordError: it has fewer letters than needed.
    """
    least = PASSWORD_OPENING_LETTERS_MIN if opens_data else PASSWORD_LETTERS_MIN
    if len(normal(password)) < least:
        raise PasswordError(f"at least {least} characters")


def seal_record(store_key: StoreKey, name: str, plaintext: bytes, entropy: Entropy) -> bytes:
    """Seal a record of this device's store under its name."""
    return seal_box(_record_key(store_key, name), plaintext, _record_aad(name), entropy)


def open_record(store_key: StoreKey, name: str, sealed: bytes) -> bytes:
    """Open a record of this device's store.

    Raises:
        StoreDamagedError: it was altered, stands under another name, or is of another store.
    """
    try:
        return open_box(_record_key(store_key, name), sealed, _record_aad(name))
    except OpenError as exc:
        raise StoreDamagedError(name) from exc


class PassphraseBox(msgspec.Struct, frozen=True, array_like=True):
    """Something sealed by a passphrase: how the passphrase is stretched, and the box."""

    iterations: int
    salt: bytes
    sealed: bytes


def seal_sudo(
    store_key: StoreKey,
    passphrase: str,
    keys: AccountKeys,
    entropy: Entropy,
    iterations: int = PASSWORD_ITERATIONS_MIN,
) -> bytes:
    """Seal the account's keys so that opening them takes this device's store and the person's passphrase."""
    salt = entropy(SALT_BYTES)
    master = stretch(passphrase, salt, iterations)
    key = store_mac(store_key, "sudo", keys.account + master)
    sealed = seal_box(key, keys.expose(), _passphrase_aad("sudo-aad", keys.account, iterations, salt), entropy)
    return msgspec.msgpack.encode(PassphraseBox(iterations, salt, sealed))


def open_sudo(store_key: StoreKey, passphrase: str, account: AccountId, record: bytes) -> AccountKeys:
    """Open the account's keys, to change devices or members; the caller drops them after 15 minutes.

    Raises:
        CredentialsError: the passphrase is wrong.
        StoreDamagedError: the record is none.
    """
    box = _passphrase_box(record)
    aad = _passphrase_aad("sudo-aad", account, box.iterations, box.salt)
    try:
        return AccountKeys(open_box(_sudo_key(store_key, passphrase, account, box), box.sealed, aad))
    except OpenError as exc:
        raise CredentialsError from exc


def seal_store_key(
    store_key: StoreKey, passphrase: str, entropy: Entropy, iterations: int = PASSWORD_ITERATIONS_MIN
) -> bytes:
    """Seal the StoreKey itself by a passphrase, where the system has no keyring."""
    salt = entropy(SALT_BYTES)
    key = kdf(stretch(passphrase, salt, iterations), salt, "store-key")
    sealed = seal_box(key, store_key.expose(), _passphrase_aad("store-key-aad", b"", iterations, salt), entropy)
    return msgspec.msgpack.encode(PassphraseBox(iterations, salt, sealed))


def open_store_key(passphrase: str, record: bytes) -> StoreKey:
    """Open the StoreKey.

    Raises:
        StoreKeyError: the passphrase is wrong.
        StoreDamagedError: the record is none.
    """
    box = _passphrase_box(record)
    aad = _passphrase_aad("store-key-aad", b"", box.iterations, box.salt)
    try:
        return StoreKey(open_box(_store_key_key(passphrase, box), box.sealed, aad))
    except OpenError as exc:
        raise StoreKeyError("the passphrase is wrong") from exc


def _check_params(params: UnlockerParamsResult, kind: str, iterations_min: int) -> None:
    if len(params.salt) != SALT_BYTES:
        raise WeakParametersError(f"a salt of {len(params.salt)} bytes")
    if params.kdf != (KDF_KIT if kind == KIND_KIT else KDF_PASSWORD):
        raise WeakParametersError(f"a {kind} is not derived by {params.kdf}")
    if kind == KIND_PASSWORD and not iterations_min <= params.iterations <= PASSWORD_ITERATIONS_MAX:
        raise WeakParametersError(f"{params.iterations} iterations")


def _kit_check(raw: bytes) -> int:
    digest = hashlib.sha256(label("kit-check", raw)).digest()
    return int.from_bytes(digest[:2], "big") >> 4


def _wrapped_aad(kind: str, account: AccountId) -> bytes:
    return label("unlocker-wrap", prefixed(kind.encode()) + account)


def _record_key(store_key: StoreKey, name: str) -> bytes:
    return store_mac(store_key, "record", prefixed(name.encode()))


def _record_aad(name: str) -> bytes:
    return label("record-aad", prefixed(name.encode()))


def _sudo_key(store_key: StoreKey, passphrase: str, account: AccountId, box: PassphraseBox) -> bytes:
    return store_mac(store_key, "sudo", account + stretch(passphrase, box.salt, box.iterations))


def _store_key_key(passphrase: str, box: PassphraseBox) -> bytes:
    return kdf(stretch(passphrase, box.salt, box.iterations), box.salt, "store-key")


def _passphrase_aad(use: str, owner: bytes, iterations: int, salt: bytes) -> bytes:
    return label(use, prefixed(owner) + u32(iterations) + salt)


def _passphrase_box(record: bytes) -> PassphraseBox:
    try:
        box = msgspec.msgpack.decode(record, type=PassphraseBox)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise StoreDamagedError("a record sealed by a passphrase") from exc
    if not 1 <= box.iterations <= PASSWORD_ITERATIONS_MAX or len(box.salt) != SALT_BYTES:
        raise StoreDamagedError("a record sealed by a passphrase")
    return box
