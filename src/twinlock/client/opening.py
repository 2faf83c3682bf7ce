"""The four ways to an open database: connect, sign up, sign in, recover."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from twinlock.client import enrolment
from twinlock.client.client import Client
from twinlock.client.connection import Connection
from twinlock.client.device_clock import DeviceClock
from twinlock.client.device_context import DeviceContext
from twinlock.client.device_state import DeviceState, Home
from twinlock.client.enrolment import Enrolment
from twinlock.client.keystore import HeldKey, create_store_key, forget_store_key, load_store_key
from twinlock.client.profile import Profile, default_profile
from twinlock.client.status import StatusBoard
from twinlock.client.sudo import Sudo
from twinlock.client.transport import parse_address
from twinlock.client.vault_file import VaultFile
from twinlock.errors import ApprovalNeededError, OfflineError
from twinlock.protocol.client import ClientIdentity
from twinlock.sealing.identity import AccountKeys, DeviceKeys
from twinlock.sealing.suite import Entropy
from twinlock.sealing.vault import RecoveryKit, check_password

FIRST_SPACE_TITLE = "home"


def wall_clock_ms() -> int:
    """Return this machine's clock."""
    return time.time_ns() // 1_000_000


class Options(msgspec.Struct, frozen=True):
    """What the build of an application decides.

    `password_unlock` lets the password open data too (14 characters at least): two keys then hang on one password
    that can be guessed, whose holder is the operator. `wall_ms` and `entropy` are where time and chance come from.
    """

    password_unlock: bool = False
    wall_ms: Callable[[], int] = wall_clock_ms
    entropy: Entropy = os.urandom


async def connect(
    url: str | None = None,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    *,
    options: Options = Options(),  # noqa: B008 - an immutable value
) -> Client:
    """Open the database of a profile. Without a server it opens what is on this device, and connects when it can.

    Args:
        url: the server's address, if it has moved; the server itself is pinned by its key.
        profile: the folder; by default TWINLOCK_PROFILE, else that of `twinlock dev`.
        passphrase: what the StoreKey was sealed by, if it was.

    Raises:
        ProfileMissingError, ProfileInUseError, StoreKeyError, StoreDamagedError: the profile does not open.
        WrongServerError, DeviceRevokedError: the server's first answer forbids to go on.
    """
    opened = Profile.open(_folder(profile))
    try:
        held = load_store_key(opened.folder, passphrase)
        vault = VaultFile(opened.vault_path, held.key, options.entropy)
        try:
            state = DeviceState(vault, held.key, options.entropy)
        except BaseException:
            vault.close()
            raise
    except BaseException:
        opened.close()
        raise
    return await _start(_client(opened, held, state, url, options))


async def sign_up(
    url: str,
    name: str,
    password: str,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    *,
    options: Options = Options(),  # noqa: B008
) -> Client:
    """Make an account on a server, with this device as its first and a space named "home".

    `db.recovery_kit()` then shows the recovery kit, once.

    Raises:
        NameTakenError, NameInvalidError, PasswordError, OfflineError: no account was made.
        ProfileExistsError: the folder has a profile already.
    """

    async def enrol(session: enrolment.AnonymousSession, device_keys: DeviceKeys, new: _NewProfile) -> Enrolment:
        keys = (AccountKeys.make(options.entropy), device_keys)
        made, request = await asyncio.to_thread(
            enrolment.new_account, session.server_id, name, password, keys, options.entropy, options.password_unlock
        )
        # What the account cannot be without is on the disk before the server knows of it.
        new.keep(made)
        await enrolment.create_account(session, request)
        return made

    client = await _enrol(url, profile, passphrase, options, enrol, password)
    try:
        await client.create_space(FIRST_SPACE_TITLE)
    except BaseException:
        await client.close()
        raise
    return client


async def sign_in(
    url: str,
    name: str,
    password: str,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    *,
    kit: str | None = None,
    options: Options = Options(),  # noqa: B008
) -> Client:
    """Add this device to an account. A password signs in but does not open data: that takes the recovery kit.

    Raises:
        CredentialsError: the name, the password or the kit is wrong.
        ApprovalNeededError: the password is right; give `kit` too.
    """

    async def enrol(session: enrolment.AnonymousSession, device_keys: DeviceKeys, new: _NewProfile) -> Enrolment:
        opened = await enrolment.open_account(session, name, password, options.password_unlock)
        if kit is not None:
            opened = await enrolment.open_account(session, name, RecoveryKit.parse(kit), True)
        if opened.keys is None:
            raise ApprovalNeededError
        return await enrolment.add_device(session, name, opened, device_keys)

    return await _enrol(url, profile, passphrase, options, enrol, password)


async def recover(
    url: str,
    name: str,
    kit: str,
    password: str | None = None,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    *,
    options: Options = Options(),  # noqa: B008
) -> Client:
    """Add this device to an account by the recovery kit.

    Args:
        password: replaces the account's password, and is what `db.unlock` takes on this device; without one this
            device keeps no signing key, so that it can change no devices and make no spaces later.

    Raises:
        RecoveryKitError: the kit's letters do not check out.
        CredentialsError: there is no such account, or the kit is another's.
    """
    if password is not None:
        check_password(password)
    secret = RecoveryKit.parse(kit)

    async def enrol(session: enrolment.AnonymousSession, device_keys: DeviceKeys, new: _NewProfile) -> Enrolment:
        opened = await enrolment.open_account(session, name, secret, True)
        if opened.keys is None:
            raise ApprovalNeededError
        return await enrolment.add_device(session, name, opened, device_keys)

    client = await _enrol(url, profile, passphrase, options, enrol, None)
    if password is not None:
        try:
            await client.set_password(password)
        except BaseException:
            await client.close()
            raise
    return client


_Enrol = Callable[[enrolment.AnonymousSession, DeviceKeys, "_NewProfile"], Awaitable[Enrolment]]


class _NewProfile:
    """A profile that is being made; removed again unless it is finished."""

    def __init__(self, folder: Path, url: str, passphrase: str | None, entropy: Entropy) -> None:
        self._url = url
        self._entropy = entropy
        self.profile = Profile.create(folder)
        self.device_keys = DeviceKeys.make(entropy)
        self.held = create_store_key(folder, passphrase, entropy)
        self.state: DeviceState | None = None

    def keep(self, made: Enrolment) -> DeviceState:
        """Write the records of the profile."""
        if self.state is None:
            vault = VaultFile(self.profile.vault_path, self.held.key, self._entropy)
            home = Home(self._url, made.server_id, made.name, made.keys.account)
            keys = (made.keys, self.device_keys)
            self.state = DeviceState.create(vault, self.held.key, home, keys, self._entropy)
            self.state.put_account_log(made.keys.account, made.entries)
        return self.state

    def remove(self) -> None:
        """Leave nothing behind."""
        if self.state is not None:
            self.state.close()
        forget_store_key(self.profile.folder)
        self.profile.erase()


async def _enrol(
    url: str,
    profile: Path | str | None,
    passphrase: str | None,
    options: Options,
    enrol: _Enrol,
    password: str | None,
) -> Client:
    """Make a profile by an anonymous session, then open it as its new device."""
    address = parse_address(url)
    new = _NewProfile(_folder(profile), address.origin, passphrase, options.entropy)
    async with AsyncExitStack() as failing:
        failing.callback(new.remove)
        session_of = enrolment.anonymous_session(address, None, options.entropy, options.wall_ms)
        async with session_of as session:
            made = await enrol(session, new.device_keys, new)
        state = new.keep(made)
        if password is not None:
            state.put_sudo(await asyncio.to_thread(state.seal_sudo, made.keys, password))
        failing.pop_all()
    client = _client(new.profile, new.held, state, None, options, made)
    await _start(client)
    if not client.is_connected:
        await client.close()
        raise OfflineError("the device was enrolled, and the connection then failed: open it with `connect`")
    return client


def _client(
    profile: Profile,
    held: HeldKey,
    state: DeviceState,
    url: str | None,
    options: Options,
    made: Enrolment | None = None,
) -> Client:
    clock = DeviceClock(options.wall_ms, state.clock_offset_ms())
    identity = ClientIdentity(state.home.account, state.device_keys.device, state.device_keys.sign.sign)
    board, sudo = StatusBoard(), Sudo(clock.now_ms)
    address = parse_address(url or state.home.url)
    connection = Connection(address, identity, state.home.server_id, board, clock, options.entropy)
    context = DeviceContext(profile, state, clock, options.entropy)
    if made is not None:
        sudo.grant(made.keys)
    return Client(context, held.custody, connection, board, sudo, made.kit if made else None)


async def _start(client: Client) -> Client:
    try:
        await client.start()
    except BaseException:
        await client.close()
        raise
    return client


def _folder(profile: Path | str | None) -> Path:
    return default_profile() if profile is None else Path(profile)
