"""Making a profile, opening one, and the client on top of it: what every way to an open database ends with."""

from __future__ import annotations

import asyncio
from pathlib import Path

from twinlock.client.client import Client
from twinlock.client.connection import Connection
from twinlock.client.credentials import Credentials, KitKeeper
from twinlock.client.device_clock import DeviceClock
from twinlock.client.device_context import DeviceContext
from twinlock.client.device_state import DeviceName, DeviceState, Home
from twinlock.client.enrolment import Enrolment
from twinlock.client.keystore import HeldKey, create_store_key, forget_store_key, load_store_key
from twinlock.client.options import Options
from twinlock.client.profile import Profile, default_profile
from twinlock.client.revoked import refuse_if_revoked
from twinlock.client.status import StatusBoard
from twinlock.client.sudo import Sudo
from twinlock.client.transport import parse_address
from twinlock.client.vault_file import VaultFile
from twinlock.errors import OfflineError
from twinlock.protocol.client import ClientIdentity
from twinlock.sealing.identity import DeviceKeys


class NewProfile:
    """A profile that is being made; removed again unless it is finished. Until `keep` its keys are in memory only."""

    def __init__(self, folder: Path, url: str, passphrase: str | None, options: Options) -> None:
        self._url = url
        self._passphrase = passphrase
        self._options = options
        self._name = options.own_name
        self.profile = Profile.create(folder)
        self.device_keys = DeviceKeys.make(options.entropy)
        self._held: HeldKey | None = None
        self._state: DeviceState | None = None

    def keep(self, made: Enrolment) -> DeviceState:
        """Write the records of the profile, and the StoreKey that seals them."""
        if self._state is None:
            entropy = self._options.entropy
            self._held = create_store_key(self.profile.folder, self._passphrase, entropy)
            vault = VaultFile(self.profile.vault_path, self._held.key, entropy)
            home = Home(self._url, made.server_id, made.name, made.keys.account)
            self._state = DeviceState.create(vault, self._held.key, home, (made.keys, self.device_keys), entropy)
            self._state.put_account_log(made.keys.account, made.entries)
            self._state.put_device_name(DeviceName(self._name))
        return self._state

    def remove(self) -> None:
        """Leave nothing behind."""
        if self._state is not None:
            self._state.close()
        forget_store_key(self.profile.folder)
        self.profile.erase()

    def close(self) -> None:
        """Leave a finished profile, to be opened by `open_profile`."""
        if self._state is not None:
            self._state.close()
        self.profile.close()

    async def open(self, made: Enrolment, password: str | None) -> Client:
        """Finish the profile and open it.

        Args:
            made: what the enrolment gave.
            password: what `db.unlock` takes on this device; without one it keeps no signing key.

        Raises:
            OfflineError: the device is enrolled, and the connection failed then.
        """
        try:
            state = self.keep(made)
            if password is not None:
                state.put_sudo(await asyncio.to_thread(state.seal_sudo, made.keys, password))
        except BaseException:
            self.remove()
            raise
        assert self._held is not None
        client = client_of(self.profile, self._held, state, None, self._options, made)
        await started(client)
        if not client.is_connected:
            await client.close()
            raise OfflineError("the device was enrolled, and the connection then failed: open it with `connect`")
        return client


def open_profile(folder: Path, passphrase: str | None, options: Options) -> tuple[Profile, HeldKey, DeviceState]:
    """Open a profile's records; what was opened is closed again if anything fails."""
    opened = Profile.open(folder)
    try:
        refuse_if_revoked(opened)
        held = load_store_key(opened.folder, passphrase)
        vault = VaultFile(opened.vault_path, held.key, options.entropy)
        try:
            return opened, held, DeviceState(vault, held.key, options.entropy)
        except BaseException:
            vault.close()
            raise
    except BaseException:
        opened.close()
        raise


def client_of(
    profile: Profile,
    held: HeldKey,
    state: DeviceState,
    url: str | None,
    options: Options,
    made: Enrolment | None = None,
    kit_keeper: KitKeeper | None = None,
) -> Client:
    """Put a client together on an open profile."""
    clock = DeviceClock(options.wall_ms, state.clock_offset_ms())
    identity = ClientIdentity(state.home.account, state.device_keys.device, state.device_keys.sign.sign)
    board, sudo = StatusBoard(), Sudo(clock.now_ms, state.account_kem)
    address = parse_address(url or state.home.url)
    connection = Connection(address, identity, state.home.server_id, board, clock, options.entropy, options.dial)
    connection.token = options.token
    is_weak = held.custody.is_weak
    context = DeviceContext(profile, state, clock, options.entropy, is_weak, options.app_url, options.files)
    if made is not None:
        sudo.grant(made.keys)
    kit = made.kit if made is not None else None
    credentials = Credentials(context, connection, sudo, kit, options.password_unlock, kit_keeper)
    return Client(context, held.custody, connection, board, credentials)


async def started(client: Client) -> Client:
    """Start a client, or close it again."""
    try:
        await client.start()
    except BaseException:
        await client.close()
        raise
    return client


def profile_folder(profile: Path | str | None) -> Path:
    """Return the folder that was meant."""
    return default_profile() if profile is None else Path(profile)
