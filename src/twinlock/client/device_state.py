"""What this device keeps of its account, as typed records of the vault. See spec/sealing.md, sections 2 and 9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.client.vault_file import VaultFile
from twinlock.errors import ProfileMissingError, StoreDamagedError
from twinlock.ids import AccountId, Epoch, SpaceId
from twinlock.protocol.calls import SignedEntry
from twinlock.sealing.identity import AccountKeys, DeviceKeys
from twinlock.sealing.suite import SECRET_BYTES, Entropy, MemberKey, ServiceKey, StoreKey
from twinlock.sealing.vault import open_sudo, seal_sudo

Kept = TypeVar("Kept")


class Home(msgspec.Struct, frozen=True):
    """Which account this profile is for, and on which server: the server is pinned by its id."""

    url: str
    server_id: bytes
    name: str
    account: AccountId


class KeptClock(msgspec.Struct, frozen=True):
    """The last correction of the clock and the newest trusted time."""

    offset_ms: int = 0
    trusted_ms: int = 0


class KeptLease(msgspec.Struct, frozen=True):
    """A service key and the time at which it ends."""

    epoch: Epoch
    not_after_ms: int
    service_key: bytes


class DeviceState:
    """The records of one profile. Everything is on the disk when a method returns."""

    __slots__ = ("_entropy", "_store_key", "_vault", "account_kem", "device_keys", "home")

    def __init__(self, vault: VaultFile, store_key: StoreKey, entropy: Entropy) -> None:
        self._vault = vault
        self._store_key = store_key
        self._entropy = entropy
        home = self._get("home", Home)
        device_keys, kem = vault.get("device-keys"), vault.get("account-kem")
        if home is None or device_keys is None or kem is None:
            raise ProfileMissingError("its vault was never completed")
        self.home = home
        self.device_keys = DeviceKeys(device_keys)
        self.account_kem = X25519PrivateKey.from_private_bytes(kem)

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

    def seal_sudo(self, keys: AccountKeys, passphrase: str) -> None:
        """Keep the account's signing key, to be opened by the passphrase only."""
        self._vault.put({"account-sudo": seal_sudo(self._store_key, passphrase, keys, self._entropy)})

    def open_sudo(self, passphrase: str) -> AccountKeys:
        """Return the account's keys.

        Raises:
            CredentialsError: the passphrase is wrong.
        """
        record = self._vault.get("account-sudo")
        if record is None:
            raise StoreDamagedError("the account's signing key is missing")
        return open_sudo(self._store_key, passphrase, self.home.account, record)

    def clock(self) -> KeptClock:
        """Return what is known of the time."""
        return self._get("clock", KeptClock) or KeptClock()

    def put_clock(self, clock: KeptClock) -> None:
        """Keep what is known of the time."""
        self._put({"clock": clock})

    def account_log(self, account: AccountId) -> list[SignedEntry]:
        """Return an account's log as far as it was read."""
        return self._get(f"account-log/{account.hex()}", list[SignedEntry]) or []

    def put_account_log(self, account: AccountId, entries: Sequence[SignedEntry]) -> None:
        """Keep an account's log."""
        self._put({f"account-log/{account.hex()}": entries})

    def spaces(self) -> list[SpaceId]:
        """Return the spaces whose logs are kept."""
        return [SpaceId(bytes.fromhex(name.partition("/")[2])) for name in self._vault.names("space-log/")]

    def space_log(self, space: SpaceId) -> list[SignedEntry]:
        """Return a space's log as far as it was read."""
        return self._get(f"space-log/{space.hex()}", list[SignedEntry]) or []

    def put_space_log(self, space: SpaceId, entries: Sequence[SignedEntry]) -> None:
        """Keep a space's log."""
        self._put({f"space-log/{space.hex()}": entries})

    def member_keys(self, space: SpaceId) -> dict[Epoch, MemberKey]:
        """Return the A's of a space."""
        raw = self._get(f"member-keys/{space.hex()}", dict[int, bytes]) or {}
        return {Epoch(epoch): MemberKey(key) for epoch, key in raw.items()}

    def put_member_keys(self, space: SpaceId, keys: Mapping[Epoch, MemberKey]) -> None:
        """Keep the A's of a space."""
        self._put({f"member-keys/{space.hex()}": {int(epoch): key.expose() for epoch, key in keys.items()}})

    def leases(self, space: SpaceId) -> dict[Epoch, tuple[ServiceKey, int]]:
        """Return the cached leases of a space: service key and end by epoch."""
        kept = self._get(f"leases/{space.hex()}", list[KeptLease]) or []
        return {lease.epoch: (ServiceKey(lease.service_key), lease.not_after_ms) for lease in kept}

    def put_leases(self, space: SpaceId, leases: Mapping[Epoch, tuple[ServiceKey, int]]) -> None:
        """Cache leases; none at all deletes those that were cached."""
        kept = [KeptLease(epoch, end, key.expose()) for epoch, (key, end) in leases.items()]
        self._put({f"leases/{space.hex()}": kept or None})

    def title_index(self, space: SpaceId) -> bytes:
        """Return what a space's name is filed under (empty: not known yet)."""
        return self._vault.get(f"title-index/{space.hex()}") or b""

    def put_title_index(self, space: SpaceId, index: bytes) -> None:
        """File a space's name."""
        self._vault.put({f"title-index/{space.hex()}": index})

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
