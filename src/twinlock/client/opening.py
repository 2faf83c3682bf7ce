"""The ways to an open database: connect, sign up, sign in, recover. Pairing has a module of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from twinlock.client import enrolment
from twinlock.client.client import Client
from twinlock.client.enrolment import AnonymousSession, Enrolment, enrolling
from twinlock.client.new_profile import NewProfile, client_of, open_profile, profile_folder, started
from twinlock.client.options import Options
from twinlock.client.service_accounts import connect_service
from twinlock.client.token_times import fresh_token
from twinlock.client.transport import parse_address
from twinlock.errors import ApprovalNeededError, CredentialsError, PasswordError
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.vault import RecoveryKit, check_password

FIRST_SPACE_TITLE = "home"


async def connect(
    url: str | None = None,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    *,
    key_file: Path | str | None = None,
    options: Options = Options(),  # noqa: B008 - an immutable value
) -> Client:
    """Open the database of a profile. Without a server it opens what is on this device, and connects when it can.

    Args:
        url: the server's address, if it has moved; the server itself is pinned by its key.
        profile: the folder; by default TWINLOCK_PROFILE, else that of `twinlock dev`.
        passphrase: what the StoreKey was sealed by, if it was.
        key_file: the keys of a service account: a new profile is enrolled by them, and it is always unlocked.

    Raises:
        ProfileMissingError, ProfileInUseError, StoreKeyError, StoreDamagedError: the profile does not open.
        WrongServerError, DeviceRevokedError: the server's first answer forbids to go on.
        KeyFileError: the key file is missing, unsafe, or another account's.
    """
    if key_file is not None:
        return await connect_service(Path(key_file), url, profile, passphrase, options)
    opened, held, state = open_profile(profile_folder(profile), passphrase, options)
    return await started(client_of(opened, held, state, url, options))


async def sign_up(
    url: str,
    name: str,
    password: str | None = None,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    *,
    options: Options = Options(),  # noqa: B008
) -> Client:
    """Make an account on a server, with this device as its first and a space named "home".

    `db.recovery_kit()` then shows the recovery kit, once.

    Args:
        password: signs in on the account's next devices and unlocks this one. With `options.token` the application's
            own sign-in takes the first place, and the password only unlocks this device; without one it keeps no
            signing key.

    Raises:
        NameTakenError, NameInvalidError, PasswordError, TokenError, OfflineError: no account was made.
        ProfileExistsError: the folder has a profile already.
    """
    if password is None and options.token is None:
        raise PasswordError("an account needs a password, or a token of the application's own sign-in")

    async def enrol(session: AnonymousSession, new: NewProfile) -> Enrolment:
        keys = (AccountKeys.make(options.entropy), new.device_keys)
        token = await fresh_token(options.token)
        made, request = await asyncio.to_thread(
            enrolment.new_account, session.server_id, name, password, keys, options, token
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
    name: str | None = None,
    password: str | None = None,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    *,
    kit: str | None = None,
    options: Options = Options(),  # noqa: B008
) -> Client:
    """Add this device to an account. A password signs in but does not open data: that takes the recovery kit.

    With `options.token` the application's own sign-in takes the place of name and password; the password then is what
    unlocks this device, if it is given.

    Raises:
        CredentialsError: the name, the password or the kit is wrong.
        TokenError: the token is not valid here.
        ApprovalNeededError: the sign-in is right; give `kit` too, or have an old device approve this one.
    """

    async def enrol(session: AnonymousSession, new: NewProfile) -> Enrolment:
        if options.token is not None:
            known = await enrolment.open_token(session, await fresh_token(options.token))
            opened, real_name = known.opened, known.name
        elif name is None or password is None:
            raise CredentialsError("a name and a password are needed")
        else:
            opened, real_name = await enrolment.open_account(session, name, password, options.password_unlock), name
        if kit is not None:
            opened = await enrolment.open_account(session, real_name, RecoveryKit.parse(kit), True)
        if opened.keys is None:
            raise ApprovalNeededError
        return await enrolment.add_device(session, real_name, opened, new.device_keys)

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
        check_password(password, opens_data=options.password_unlock)
    secret = RecoveryKit.parse(kit)

    async def enrol(session: AnonymousSession, new: NewProfile) -> Enrolment:
        opened = await enrolment.open_account(session, name, secret, True)
        if opened.keys is None:
            raise ApprovalNeededError
        return await enrolment.add_device(session, name, opened, new.device_keys)

    client = await _enrol(url, profile, passphrase, options, enrol, None)
    if password is not None:
        try:
            await client.set_password(password)
        except BaseException:
            await client.close()
            raise
    return client


_Enrol = Callable[[AnonymousSession, NewProfile], Awaitable[Enrolment]]


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
    new = NewProfile(profile_folder(profile), address.text, passphrase, options)
    try:
        async with enrolling(options, address) as session:
            made = await enrol(session, new)
    except BaseException:
        new.remove()
        raise
    return await new.open(made, password)
