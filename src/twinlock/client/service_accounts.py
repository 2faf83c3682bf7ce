"""Accounts of programs, workers and gateways: all their keys follow from one file. See spec/sealing.md, section 2."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import msgspec

from twinlock.client.client import Client
from twinlock.client.credentials import KitKeeper
from twinlock.client.device_state import DeviceState
from twinlock.client.enrolment import (
    AnonymousSession,
    add_device,
    check_account,
    create_account,
    enrolling,
    open_account,
)
from twinlock.client.new_profile import NewProfile, client_of, open_profile, started
from twinlock.client.options import Options
from twinlock.client.private_files import FILE_MODE, destroy_file, sync_folder, write_private
from twinlock.client.profile import ENVIRONMENT_NAME, Profile, data_folder
from twinlock.client.transport import parse_address
from twinlock.errors import (
    ApprovalNeededError,
    CredentialsError,
    InternalError,
    KeyFileError,
    KeyServiceError,
    MalformedFrameError,
    OfflineError,
    RecoveryKitError,
    StoreError,
    TwinlockError,
)
from twinlock.protocol.calls import CreateAccount
from twinlock.protocol.names import account_name
from twinlock.sealing.account_requests import sign_up_request
from twinlock.sealing.identity import AccountKeys, account_genesis
from twinlock.sealing.vault import RecoveryKit, make_unlocker

KIT_ITERATIONS = 1
"""A kit is 128 random bits: stretching it as one does with a password would add nothing."""


_UNCERTAIN = (OfflineError, MalformedFrameError, InternalError, KeyServiceError, StoreError)
"""After these the server may have made the account all the same, and the file is all that opens it."""


class ServiceAccount(msgspec.Struct, frozen=True):
    """A service account that was just made, and where its keys are."""

    name: str
    id: str
    key_file: Path


class KeyFile(msgspec.Struct, frozen=True):
    """What the file holds: the account, the server that it is pinned to, and the kit that opens its keys."""

    url: str
    server_id: str
    name: str
    kit: str

    def __repr__(self) -> str:
        return f"KeyFile({self.name!r}, hidden)"


class KeyFileKeeper(KitKeeper):
    """Puts a new kit into the key file. Between the two steps the server takes it; a draft that stays was taken too."""

    def __init__(self, path: Path, keys: KeyFile) -> None:
        self._path = path
        self._keys = keys
        self._draft = path.with_name(f"{path.name}.draft")

    def draft(self, kit: RecoveryKit) -> None:
        """Write the file beside the present one.

        Raises:
            KeyFileError: the folder cannot be written to; the old kit stays.
        """
        try:
            write_private(self._draft, msgspec.json.encode(msgspec.structs.replace(self._keys, kit=str(kit))))
        except OSError as exc:
            raise KeyFileError(f"{self._draft}: {exc.strerror}") from exc

    def keep(self, state: DeviceState, keys: AccountKeys, kit: RecoveryKit) -> None:
        """Put it in place of the present one, and seal this device's signing key by it."""
        self._draft.replace(self._path)
        sync_folder(self._path.parent)
        state.put_sudo(state.seal_sudo(keys, str(kit), KIT_ITERATIONS))


async def create_service_account(
    url: str,
    name: str,
    key_file: Path | str,
    *,
    options: Options = Options(),  # noqa: B008 - an immutable value
) -> ServiceAccount:
    """Make an account for a program. Whoever has the file is the account: keep it as you would a private key.

    `connect(key_file=...)` opens it on any machine; it is invited to spaces like anyone.

    Raises:
        NameTakenError, NameInvalidError, TokenError: no account was made.
        OfflineError: no account was made; or, if the file is there, the answer was lost and it may have been.
        KeyFileError: the file exists already, or cannot be written.
    """
    address, path = parse_address(url), Path(key_file)
    async with enrolling(options, address) as session:
        keys, kit = AccountKeys.make(options.entropy), RecoveryKit.make(options.entropy)
        request = await _request(session, account_name(name), keys, kit, options)
        content = KeyFile(address.text, _text(session.server_id), request.name, str(kit))
        # The file comes first: an account whose keys were lost at its making could never be opened.
        _create(path, content)
        try:
            await create_account(session, request)
        except _UNCERTAIN as exc:
            kept = f"{path} stays: open it with `connect(key_file=...)`; if there is no such account, delete it"
            raise type(exc)(kept, retry_after_ms=exc.retry_after_ms) from exc
        except TwinlockError:
            destroy_file(path)
            raise
    return ServiceAccount(request.name, keys.account.hex(), path)


async def connect_service(
    key_file: Path, url: str | None, profile: Path | str | None, passphrase: str | None, options: Options
) -> Client:
    """Open the profile of a service account, which is enrolled by the key file if it is new, and leave it unlocked.

    Raises:
        KeyFileError: the file is missing, unsafe, or another account's than the profile's.
        CredentialsError: the account has another kit by now.
    """
    keys, kit = read_key_file(key_file)
    folder = Path(profile) if profile is not None else _default_profile(keys.name)
    if not Profile.exists(folder):
        await _enrol(folder, keys, kit, url, passphrase, options)
    opened, held, state = open_profile(folder, passphrase, options)
    keeper = KeyFileKeeper(key_file, keys)
    client = client_of(opened, held, state, url, options, kit_keeper=keeper)
    try:
        if (state.home.name, _text(state.home.server_id)) != (keys.name, keys.server_id):
            raise KeyFileError(f"the profile in {folder} is another account's")
        client.grant_for_good(await _account_keys(state, keys, kit, url, options))
    except BaseException:
        await client.close()
        raise
    return await started(client)


async def _account_keys(
    state: DeviceState, keys: KeyFile, kit: RecoveryKit, url: str | None, options: Options
) -> AccountKeys:
    """Open the account's keys with the kit: those that lie here, or those on the server if the kit was replaced."""
    try:
        return state.open_sudo(str(kit), state.sudo_record())
    except CredentialsError:
        address = parse_address(url or state.home.url)
        async with enrolling(options, address, state.home.server_id) as session:
            opened = await open_account(session, keys.name, kit, True)
    check_account(opened)
    if opened.keys is None:
        raise CredentialsError
    state.put_sudo(state.seal_sudo(opened.keys, str(kit), KIT_ITERATIONS))
    return opened.keys


def read_key_file(path: Path) -> tuple[KeyFile, RecoveryKit]:
    """Read a key file, and refuse one that others can read.

    Raises:
        KeyFileError: it is missing, readable for others, or no key file.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as exc:
        raise KeyFileError(f"{path}: {exc.strerror}") from exc
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"{path} has mode {stat.S_IMODE(mode):04o}: others than its owner can use it")
    try:
        keys = msgspec.json.decode(content, type=KeyFile)
        return keys, RecoveryKit.parse(keys.kit)
    except (msgspec.DecodeError, RecoveryKitError) as exc:
        raise KeyFileError(f"{path} is no key file") from exc


async def _request(
    session: AnonymousSession, name: str, keys: AccountKeys, kit: RecoveryKit, options: Options
) -> CreateAccount:
    token = await options.token() if options.token is not None else ""
    unlocker = make_unlocker(kit, name, session.server_id, options.entropy, keys)
    genesis = account_genesis(keys, options.entropy)
    return sign_up_request(keys, session.server_id, name, [genesis], [unlocker], token)


async def _enrol(
    folder: Path, keys: KeyFile, kit: RecoveryKit, url: str | None, passphrase: str | None, options: Options
) -> None:
    address = parse_address(url or keys.url)
    new = NewProfile(folder, address.text, passphrase, options)
    try:
        async with enrolling(options, address, _octets(keys.server_id)) as session:
            opened = await open_account(session, keys.name, kit, True)
            if opened.keys is None:
                raise ApprovalNeededError
            made = await add_device(session, keys.name, opened, new.device_keys)
        state = new.keep(made)
        state.put_sudo(state.seal_sudo(made.keys, str(kit), KIT_ITERATIONS))
    except BaseException:
        new.remove()
        raise
    new.close()


def _create(path: Path, content: KeyFile) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(msgspec.json.encode(content))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as exc:
        raise KeyFileError(f"{path}: {exc.strerror}") from exc


def _default_profile(name: str) -> Path:
    given = os.environ.get(ENVIRONMENT_NAME, "")
    return Path(given) if given else data_folder() / "services" / f"{name}.profile"


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _octets(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as exc:
        raise KeyFileError("it names no server") from exc
