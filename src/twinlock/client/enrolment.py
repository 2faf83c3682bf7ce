"""How a device comes to its account, over an anonymous session: sign-up, sign-in, recovery. See spec/sealing.md, 2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

import msgspec

from twinlock.client.connection import handshake
from twinlock.client.options import Options
from twinlock.client.transport import Address, Dial, Transport, open_transport
from twinlock.errors import CredentialsError, LogInvalidError, MalformedFrameError, OfflineError
from twinlock.ids import AccountId
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import (
    AppendLog,
    CreateAccount,
    LogHead,
    Nothing,
    OpenUnlocker,
    OpenUnlockerResult,
    SignedEntry,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.client import ClientIdentity, ClientSession, Replied
from twinlock.protocol.device_calls import OpenToken, OpenTokenResult
from twinlock.protocol.names import account_name
from twinlock.sealing.account_requests import sign_up_request
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry
from twinlock.sealing.suite import Entropy
from twinlock.sealing.vault import RecoveryKit, check_password, kind_of, make_unlocker, open_wrapped, unlock

CALL_TIMEOUT_MS = 30_000

Result = TypeVar("Result", bound=msgspec.Struct)


class Enrolment(msgspec.Struct, frozen=True):
    """What enrolling a device gives: its account's keys and log, and the server that is pinned from now on."""

    server_id: bytes
    name: str
    keys: AccountKeys
    entries: list[SignedEntry]
    kit: RecoveryKit | None = None


class Opened(msgspec.Struct, frozen=True):
    """What a secret opened: the account, its log, and its keys where the secret wraps them."""

    account: AccountId
    entries: list[SignedEntry]
    keys: AccountKeys | None


class Named(msgspec.Struct, frozen=True):
    """What a token opened, and the name of its account."""

    name: str
    opened: Opened


class AnonymousSession:
    """A session without a device, which may only make or open an account. One call at a time."""

    __slots__ = ("_session", "_transport", "_wall_ms", "server_id")

    def __init__(
        self, transport: Transport, session: ClientSession, server_id: bytes, wall_ms: Callable[[], int]
    ) -> None:
        self._transport = transport
        self._session = session
        self._wall_ms = wall_ms
        self.server_id = server_id

    async def call(self, method: str, params: msgspec.Struct, result: type[Result]) -> Result:
        """Send a request and return its result."""
        number = self._session.call(method, params)
        for message in self._session.take_output():
            await self._transport.send(message)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_MS / 1000):
                raw = await self._reply(number)
            return msgspec.msgpack.decode(raw, type=result)
        except TimeoutError as exc:
            raise OfflineError(f"no answer to {method}") from exc
        except msgspec.DecodeError as exc:
            raise MalformedFrameError(f"the result of {method}") from exc

    async def _reply(self, number: int) -> msgspec.Raw:
        while True:
            event = self._session.receive(await self._transport.receive(), self._wall_ms())
            if isinstance(event, Replied) and event.call == number:
                if event.error is not None:
                    raise event.error
                return event.result


@asynccontextmanager
async def anonymous_session(
    address: Address,
    server_id: bytes | None,
    entropy: Entropy,
    wall_ms: Callable[[], int],
    dial: Dial = open_transport,
) -> AsyncIterator[AnonymousSession]:
    """Open a session without a device; the first server that is met is believed if none is pinned."""
    async with AsyncExitStack() as stack:
        transport, address = await _dialled(stack, address, dial)
        session = ClientSession(ClientIdentity(), address.origin, server_id, entropy)
        welcomed = await handshake(transport, session, wall_ms)
        yield AnonymousSession(transport, session, welcomed.server_id, wall_ms)


async def _dialled(stack: AsyncExitStack, address: Address, dial: Dial) -> tuple[Transport, Address]:
    """Dial the first of a server's addresses that answers."""
    for count in range(len(address.others)):
        turned = address.turned(count)
        try:
            return await stack.enter_async_context(dial(turned)), turned
        except OfflineError:
            continue
    last = address.turned(len(address.others))
    return await stack.enter_async_context(dial(last)), last


def enrolling(
    options: Options, address: Address, server_id: bytes | None = None
) -> AbstractAsyncContextManager[AnonymousSession]:
    """Open a session without a device, in the way that the options say."""
    return anonymous_session(address, server_id, options.entropy, options.wall_ms, options.dial)


def new_account(
    server_id: bytes,
    name: str,
    password: str | None,
    keys: tuple[AccountKeys, DeviceKeys],
    options: Options,
    token: str = "",
) -> tuple[Enrolment, CreateAccount]:
    """Make everything that creating an account takes: its log, its unlockers and its recovery kit.

    With a token the application's own sign-in takes the place of the password, of which the server then learns nothing.

    Raises:
        NameInvalidError, PasswordError: the name or the password is refused.
    """
    account_keys, device_keys = keys
    entropy, name = options.entropy, account_name(name)
    genesis = account_genesis(account_keys, entropy)
    state = replay_account([genesis])
    entries = [genesis, device_entry(account_keys, state, device_keys.sign_pk, device_keys.kem_pk)]
    kit = RecoveryKit.make(entropy)
    unlockers = [make_unlocker(kit, name, server_id, entropy, account_keys)]
    if password is not None and token:
        check_password(password)
    elif password is not None:
        wrapped = account_keys if options.password_unlock else None
        unlockers.append(make_unlocker(password, name, server_id, entropy, wrapped))
    request = sign_up_request(account_keys, server_id, name, entries, unlockers, token)
    return Enrolment(server_id, name, account_keys, entries, kit), request


async def create_account(session: AnonymousSession, request: CreateAccount) -> None:
    """Have the server make the account.

    Raises:
        NameTakenError: there is one of that name.
    """
    await session.call("account.create", request, Nothing)


async def open_account(session: AnonymousSession, name: str, secret: str | RecoveryKit, opens_data: bool) -> Opened:
    """Prove a secret to the server and open what it opens.

    Raises:
        CredentialsError: the name or the secret is wrong.
        WeakParametersError: the server asks for less stretching than this client accepts.
    """
    name = account_name(name)
    params = await session.call("unlocker.params", UnlockerParams(name, kind_of(secret)), UnlockerParamsResult)
    keys = unlock(params, secret, name, session.server_id)
    request = OpenUnlocker(name, kind_of(secret), keys.auth_key)
    result = await session.call("unlocker.open", request, OpenUnlockerResult)
    account_keys = None
    if opens_data and result.wrapped:
        account_keys = open_wrapped(keys, secret, result.account, result.wrapped)
    return Opened(result.account, result.entries, account_keys)


async def open_token(session: AnonymousSession, token: str) -> Named:
    """Sign in by a token of the application's own issuer; it opens no keys.

    Raises:
        TokenError: it is not valid here.
        CredentialsError: nobody has signed up with it yet.
    """
    result = await session.call("token.open", OpenToken(token), OpenTokenResult)
    if not result.account:
        raise CredentialsError("the token's subject has no account yet: sign up first")
    return Named(account_name(result.name), Opened(AccountId(result.account), result.entries, None))


async def add_device(session: AnonymousSession, name: str, opened: Opened, device_keys: DeviceKeys) -> Enrolment:
    """Certify this device in the account's log, with the account's own signature."""
    assert opened.keys is not None
    state = check_account(opened)
    entry = device_entry(opened.keys, state, device_keys.sign_pk, device_keys.kem_pk)
    await session.call("account.append", AppendLog(state.account, state.seq, [entry]), LogHead)
    return Enrolment(session.server_id, account_name(name), opened.keys, [*opened.entries, entry])


def check_account(opened: Opened) -> AccountState:
    """Verify the log that came with an account.

    Raises:
        LogInvalidError: it is another account's.
    """
    state = replay_account(opened.entries)
    if state.account != opened.account:
        raise LogInvalidError("the log is another account's")
    if opened.keys is not None and opened.keys.account != state.account:
        raise CredentialsError("the keys are another account's")
    if opened.keys is not None and opened.keys.kem_pk != state.kem_pk:
        raise CredentialsError("it opens a key of the account that was replaced since")
    return state
