"""What this device keeps of its account, as typed records of the vault. See spec/sealing.md, sections 2 and 9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.client.vault_file import VaultFile
from twinlock.errors import ProfileMissingError, StoreDamagedError, SudoNeededError
from twinlock.ids import AccountId, DeviceId, SpaceId
from twinlock.protocol.calls import KeyringRow, SignedEntry
from twinlock.sealing.identity import AccountKeys, DeviceKeys
from twinlock.sealing.suite import SECRET_BYTES, Entropy, StoreKey
from twinlock.sealing.vault import PASSWORD_ITERATIONS_MIN, open_sudo, seal_sudo

Kept = TypeVar("Kept")


class Home(msgspec.Struct, frozen=True):
    """Which account this profile is for, and on which server: the server is pinned by its id."""

    url: str
    server_id: bytes
    name: str
    account: AccountId


class AccountKem:
    """The half of the account's keys that is at hand without the password: it unwraps member keys, it signs nothing.

    The newest key comes first; those before it open what was wrapped before they were replaced.
    """

    __slots__ = ("account", "kems")

    def __init__(self, account: AccountId, *kems: X25519PrivateKey) -> None:
        assert kems
        self.account = account
        self.kems: tuple[X25519PrivateKey, ...] = kems

    @property
    def kem(self) -> X25519PrivateKey:
        """The key that the account's log names, as far as this device knows."""
        return self.kems[0]

    @property
    def kem_pk(self) -> bytes:
        """Its public half."""
        return self.kem.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "AccountKem(hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an account's key is not to be written anywhere")


class DeviceName(msgspec.Struct, frozen=True):
    """This device's name, and the public key of the account under which the server last had it."""

    name: str
    put_under: bytes = b""


class DeviceMemo(msgspec.Struct, frozen=True):
    """What the server last told of a device."""

    name: str
    last_seen_ms: int


class DeviceState:
    """The records of one profile. Everything is on the disk when a method returns."""

    __slots__ = ("_entropy", "_store_key", "_vault", "account_kem", "device_keys", "home")

    def __init__(self, vault: VaultFile, store_key: StoreKey, entropy: Entropy) -> None:
        self._vault = vault
        self._store_key = store_key
        self._entropy = entropy
        home = self._get("home", Home)
        device_keys, kems = vault.get("device-keys"), vault.get("account-kem")
        if home is None or device_keys is None or not kems:
            raise ProfileMissingError("its vault was never completed")
        self.home = home
        self.device_keys = DeviceKeys(device_keys)
        self.account_kem = AccountKem(home.account, *_kems(kems))

    @classmethod
    def create(
        cls, vault: VaultFile, store_key: StoreKey, home: Home, keys: tuple[AccountKeys, DeviceKeys], entropy: Entropy
    ) -> DeviceState:
        """Write the records of a new profile."""
        account_keys, device_keys = keys
        vault.put(
            {
                "home": msgspec.msgpack.encode(home),
                "device-keys": device_keys.expose(),
                "account-kem": account_keys.expose()[SECRET_BYTES:],
            }
        )
        return cls(vault, store_key, entropy)

    @property
    def store_key(self) -> StoreKey:
        """The StoreKey of this profile."""
        return self._store_key

    def close(self) -> None:
        """Release the vault."""
        self._vault.close()

    def seal_sudo(self, keys: AccountKeys, passphrase: str, iterations: int = PASSWORD_ITERATIONS_MIN) -> bytes:
        """Return the account's signing key sealed by a passphrase; slow on purpose."""
        return seal_sudo(self._store_key, passphrase, keys, self._entropy, iterations)

    def put_sudo(self, sealed: bytes) -> None:
        """Keep the account's sealed signing key."""
        self._vault.put({"account-sudo": sealed})

    def sudo_record(self) -> bytes:
        """Return the account's sealed signing key.

        Raises:
            SudoNeededError: this device keeps none.
        """
        record = self._vault.get("account-sudo")
        if record is None:
            raise SudoNeededError(
                "this device was added without a password, so it keeps no signing key: use another one"
            )
        return record

    def open_sudo(self, passphrase: str, record: bytes) -> AccountKeys:
        """Return the account's keys; slow on purpose.

        Raises:
            CredentialsError: the passphrase is wrong.
        """
        return open_sudo(self._store_key, passphrase, self.home.account, record)

    def put_account_kem(self, kem: X25519PrivateKey) -> None:
        """Keep the account's new `kem` key in front of those before it."""
        newest = kem.private_bytes_raw()
        if newest == self.account_kem.kem.private_bytes_raw():
            return
        raw = b"".join((newest, *(known.private_bytes_raw() for known in self.account_kem.kems)))
        self._vault.put({"account-kem": raw})
        # Everybody who holds this object goes on with the new key.
        self.account_kem.kems = _kems(raw)

    def device_name(self) -> DeviceName | None:
        """Return this device's name, if it was given one."""
        return self._get("device-name", DeviceName)

    def put_device_name(self, name: DeviceName) -> None:
        """Keep this device's name."""
        self._put({"device-name": name})

    def device_memos(self) -> dict[DeviceId, DeviceMemo]:
        """Return what the server last told of the account's devices."""
        return self._get("device-memos", dict[DeviceId, DeviceMemo]) or {}

    def put_device_memos(self, memos: Mapping[DeviceId, DeviceMemo]) -> None:
        """Keep what the server told of the account's devices."""
        self._put({"device-memos": memos})

    def put_url(self, url: str) -> None:
        """Keep the address at which the pinned server has just proved its key: it may have moved."""
        if url != self.home.url:
            self.home = msgspec.structs.replace(self.home, url=url)
            self._put({"home": self.home})

    def clock_offset_ms(self) -> int:
        """Return the last correction of the clock."""
        return self._get("clock-offset-ms", int) or 0

    def put_clock_offset_ms(self, offset_ms: int) -> None:
        """Keep the correction of the clock."""
        self._put({"clock-offset-ms": offset_ms})

    def account_log(self, account: AccountId) -> list[SignedEntry]:
        """Return an account's log as far as it was read."""
        return self._get(f"account-log/{account.hex()}", list[SignedEntry]) or []

    def put_account_log(self, account: AccountId, entries: Sequence[SignedEntry]) -> None:
        """Keep an account's log; a shorter one than is known, that was read before it grew, changes nothing."""
        self.put_account_logs({account: entries})

    def put_account_logs(self, logs: Mapping[AccountId, Sequence[SignedEntry]]) -> None:
        """Keep the logs of several accounts in one step."""
        grown = {
            account: entries for account, entries in logs.items() if len(entries) >= len(self.account_log(account))
        }
        if grown:
            self._put({f"account-log/{account.hex()}": entries for account, entries in grown.items()})

    def spaces(self) -> list[SpaceId]:
        """Return the spaces whose logs are kept."""
        return [SpaceId(bytes.fromhex(name.partition("/")[2])) for name in self._vault.names("space-log/")]

    def space_log(self, space: SpaceId) -> list[SignedEntry]:
        """Return a space's log as far as it was read."""
        return self._get(f"space-log/{space.hex()}", list[SignedEntry]) or []

    def put_space_log(self, space: SpaceId, entries: Sequence[SignedEntry]) -> None:
        """Keep a space's log."""
        self._put({f"space-log/{space.hex()}": entries})

    def keyring(self, space: SpaceId) -> bytes | None:
        """Return what `Keyring.export` gave: member keys, and leases that may be kept."""
        return self._vault.get(f"keyring/{space.hex()}")

    def put_keyring(self, space: SpaceId, exported: bytes) -> None:
        """Keep a space's keys."""
        self._vault.put({f"keyring/{space.hex()}": exported})

    def keyring_row(self, space: SpaceId) -> KeyringRow | None:
        """Return this account's Keyring row, as the server had it."""
        return self._get(f"keyring-row/{space.hex()}", KeyringRow)

    def put_keyring_row(self, space: SpaceId, row: KeyringRow) -> None:
        """Keep this account's Keyring row, so that a restored server can have it back."""
        self._put({f"keyring-row/{space.hex()}": row})

    def forget_keyring_row(self, space: SpaceId) -> None:
        """Delete this account's Keyring row: it may read the space no more."""
        self._vault.put({f"keyring-row/{space.hex()}": None})

    def title_index(self, space: SpaceId) -> bytes:
        """Return what a space's name is filed under (empty: not known yet)."""
        return self._vault.get(f"title-index/{space.hex()}") or b""

    def put_title_index(self, space: SpaceId, index: bytes) -> None:
        """File a space's name."""
        self._vault.put({f"title-index/{space.hex()}": index})

    def end_space(self, space: SpaceId, end: object) -> None:
        """Delete all records of a space, its keys first of all, and keep how it ended, in one step."""
        name = space.hex()
        records = (f"{kind}/{name}" for kind in ("keyring", "keyring-row", "title-index", "space-log"))
        kept = {f"space-end/{name}": msgspec.msgpack.encode(end)}
        self._vault.put({**dict.fromkeys(records), **kept})

    def space_ends(self, kind: type[Kept]) -> dict[SpaceId, Kept]:
        """Return how spaces ended that this device had."""
        spaces = [SpaceId(bytes.fromhex(name.partition("/")[2])) for name in self._vault.names("space-end/")]
        found = {space: self._get(f"space-end/{space.hex()}", kind) for space in spaces}
        return {space: end for space, end in found.items() if end is not None}

    def verified_accounts(self) -> set[AccountId]:
        """Return the accounts whose safety codes were compared on this device."""
        return {AccountId(bytes.fromhex(name.partition("/")[2])) for name in self._vault.names("verified/")}

    def put_verified(self, account: AccountId) -> None:
        """Keep that an account's safety code was compared."""
        self._vault.put({f"verified/{account.hex()}": b""})

    def _get(self, name: str, kind: type[Kept]) -> Kept | None:
        data = self._vault.get(name)
        try:
            return None if data is None else msgspec.msgpack.decode(data, type=kind)
        except msgspec.DecodeError as exc:
            raise StoreDamagedError(name) from exc

    def _put(self, records: Mapping[str, object]) -> None:
        self._vault.put(
            {name: None if value is None else msgspec.msgpack.encode(value) for name, value in records.items()}
        )


def _kems(raw: bytes) -> tuple[X25519PrivateKey, ...]:
    starts = range(0, len(raw), SECRET_BYTES)
    return tuple(X25519PrivateKey.from_private_bytes(raw[start : start + SECRET_BYTES]) for start in starts)
