"""Sign-in by the tokens of a real issuer on this machine: accounts, sessions, keys that change, and stolen tokens."""

import asyncio
import os

import msgspec
import pytest

from tests.issuer_kit import AUDIENCE, ISSUER, SigningKey, TokenIssuer, claims_of, written
from tests.server_kit import CallFailed, World, hello_to, make_world, now_ms, open_anonymous, open_wire
from twinlock.errors import TokenError
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import AppendLog, CreateAccount, Nothing, ReadLog, ReadLogResult, Spaces
from twinlock.protocol.device_calls import OpenToken, OpenTokenResult, RefreshToken
from twinlock.protocol.frames import Challenge, Hello, Notice, Welcome
from twinlock.protocol.membership_calls import Names, NamesResult
from twinlock.sealing.identity import DeviceKeys, device_entry, revoke_entry
from twinlock.sealing.vault import RecoveryKit, make_unlocker
from twinlock.server import Server, Settings
from twinlock.server.oidc import REFRESH_MS, Issuer
from twinlock.server.sign_in import SessionEnds
from twinlock.server.stores import open_stores
from twinlock.server.tasks import Tasks
from twinlock.server.tokens import subject_hash


@pytest.fixture
async def issuer():
    running = TokenIssuer()
    await running.start()
    yield running
    await running.stop()


def settings_for(issuer: TokenIssuer, **changes) -> Settings:
    given = {
        "engine": "memory:",
        "port": 0,
        "oidc_issuer": ISSUER,
        "oidc_audience": AUDIENCE,
        "oidc_jwks_url": issuer.url,
        "oidc_required": True,
        "oidc_leeway_s": 0.0,
        "oidc_refetch_s": 0.0,
        "hellos_per_s": 0,
        **changes,
    }
    return Settings(**given)


@pytest.fixture
async def serving():
    """Start servers, and stop them at the end."""
    running = []

    async def start(settings: Settings) -> Server:
        server = Server(settings)
        await server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        await server.stop()


async def signed_up(server: Server, token: str = "") -> World:
    world = World(server)
    await world.sign_up(token)
    return world


async def refusal_of(world: World, token: str, device: DeviceKeys | None = None) -> str:
    """Say hello with a token and return the code with which the server closes."""
    wire = await open_wire(world.port)
    await wire.send(
        hello_to(await wire.next(Challenge), world.port, world.account, device or world.device, token=token)
    )
    return await wire.refused()


async def test_a_token_signs_up_and_signs_in_and_without_one_there_is_no_session(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())

    wire = await world.open(token=issuer.token())
    await world.create_space(wire)

    assert await refusal_of(world, "") == "token_refused"
    with pytest.raises(CallFailed, match="token_refused"):
        await signed_up(server)


async def test_a_token_leads_to_its_account_whose_keys_it_does_not_open(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    wire, _ = await open_anonymous(server.port)

    opened = await wire.call("token.open", OpenToken(issuer.token()), OpenTokenResult)

    assert (opened.account, opened.name) == (world.account.account, world.name)
    assert replay_account(opened.entries) == world.account_log
    # The session may read the account's log now, and grow it by what the account has signed.
    page = await wire.call("account.log", ReadLog(world.account.account), ReadLogResult)
    assert page.entries == opened.entries
    device = DeviceKeys.make(os.urandom)
    entry = device_entry(world.account, world.account_log, device.sign_pk, device.kem_pk)
    await wire.call("account.append", AppendLog(world.account.account, page.seq, [entry]))
    await world.open(device, issuer.token())


async def test_a_subject_without_an_account_gets_nothing_and_signs_up(issuer, serving):
    server = await serving(settings_for(issuer))
    wire, _ = await open_anonymous(server.port)

    assert await wire.call("token.open", OpenToken(issuer.token("bob")), OpenTokenResult) == OpenTokenResult()
    with pytest.raises(CallFailed, match="not_signed_in"):
        await wire.call("account.log", ReadLog(bytes(16)))


async def test_a_subject_has_one_account(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())

    second = World(server)
    with pytest.raises(CallFailed, match="name_taken"):
        await second.sign_up(issuer.token())

    # The name that it asked for is still free, and the first account is as it was.
    third = World(server)
    third.name = second.name
    await third.sign_up(issuer.token("bob"))
    await world.open(token=issuer.token())


async def test_who_knows_an_accounts_log_ties_neither_a_subject_nor_a_name_to_it(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    member = await world.open(token=issuer.token())
    await world.create_space(member)
    page = await member.call("account.log", ReadLog(world.account.account), ReadLogResult)
    forged = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, world.account)
    wire, _ = await open_anonymous(server.port)

    for name in (world.name, "another"):
        with pytest.raises(CallFailed, match="signature_refused"):
            await wire.call("account.create", CreateAccount(name, page.entries, [forged], issuer.token("eve")))

    assert await wire.call("token.open", OpenToken(issuer.token("eve")), OpenTokenResult) == OpenTokenResult()
    named = await member.call("account.names", Names(world.space), NamesResult)
    assert named.names == {world.account.account: world.name}


async def test_a_sign_up_that_was_broken_off_blocks_nobody(issuer):
    """Its name and subject were taken, then the server went down; the keys of that account are gone."""
    stores = await open_stores(settings_for(issuer))
    await stores.directory.put("name/ann", b"a" * 16)
    await stores.directory.put(f"subject/{subject_hash(ISSUER, 'ann').hex()}", b"a" * 16)
    server = Server(settings_for(issuer), stores)
    await server.start()
    world = World(server)
    world.name = "ann"
    wire, _ = await open_anonymous(server.port)
    assert await wire.call("token.open", OpenToken(issuer.token()), OpenTokenResult) == OpenTokenResult()

    await world.sign_up(issuer.token())

    await world.open(token=issuer.token())
    await server.stop()


def false_tokens(issuer: TokenIssuer) -> dict[str, str]:
    """Every way of making a token that is not the issuer's word for anybody."""
    key = issuer.keys[0]
    return {
        "another issuer's": issuer.token(iss="https://evil.example"),
        "for another audience": issuer.token(aud="another-app"),
        "expired": issuer.token(ends_in_s=-1),
        "unsigned": written({"alg": "none", "kid": key.key_id}, claims_of()),
        "hmac under the public key": written({"alg": "HS256", "kid": key.key_id}, claims_of(), key.pem),
        "signed by another key of that name": SigningKey(key.key_id).sign(claims_of()),
        "signed by a key that is not shown": SigningKey("two").sign(claims_of()),
        "too long": issuer.token(filler="x" * 9000),
        "no token": "token",
    }


async def test_a_false_token_opens_no_session_no_account_and_creates_none(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    wire, _ = await open_anonymous(server.port)

    for kind, false in false_tokens(issuer).items():
        assert await refusal_of(world, false) == "token_refused", kind
        with pytest.raises(CallFailed, match="token_refused"):
            await wire.call("token.open", OpenToken(false))
        with pytest.raises(CallFailed, match="token_refused"):
            await signed_up(server, false)
    await world.open(token=issuer.token())


async def test_a_token_of_another_subject_opens_no_session_of_this_account(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    await signed_up(server, issuer.token("bob"))

    assert await refusal_of(world, issuer.token("bob")) == "token_refused"
    assert await refusal_of(world, issuer.token("eve")) == "token_refused"


async def test_a_stolen_token_is_worth_nothing_without_the_devices_key(issuer, serving):
    server = await serving(settings_for(issuer))
    world, token = await signed_up(server, issuer.token()), issuer.token()
    thief = DeviceKeys.make(os.urandom)

    assert await refusal_of(world, token, thief) == "unknown_device"
    # The device's own signature over a hello without a token, or with another, does not carry this one.
    for signed_with in ("", issuer.token("bob")):
        wire = await open_wire(world.port)
        hello = hello_to(await wire.next(Challenge), world.port, world.account, world.device, token=signed_with)
        await wire.send(msgspec.structs.replace(hello, token=token))
        assert await wire.refused() == "proof_refused"


async def test_a_token_that_was_taken_out_of_a_hello_breaks_its_proof(issuer, serving):
    server = await serving(settings_for(issuer, oidc_required=False))
    world = await signed_up(server, issuer.token())
    wire = await open_wire(world.port)
    hello = hello_to(await wire.next(Challenge), world.port, world.account, world.device, token=issuer.token())

    await wire.send(msgspec.structs.replace(hello, token=""))

    assert await wire.refused() == "proof_refused"


async def test_a_revoked_device_is_not_let_in_by_a_token(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    wire = await world.open(token=issuer.token())
    lost = await world.add_device(wire)
    entry = revoke_entry(world.account, world.account_log, lost.device)
    await wire.call("account.append", AppendLog(world.account.account, world.account_log.seq, [entry]))

    assert await refusal_of(world, issuer.token(), lost) == "device_revoked"


async def test_a_session_ends_with_its_token_unless_a_newer_one_came(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    await signed_up(server, issuer.token("bob"))
    short = issuer.token(ends_in_s=1)
    prolonged, ending = await world.open(token=short), await world.open(token=short)

    await prolonged.call("session.refresh", RefreshToken(issuer.token()), Nothing)
    for false in (issuer.token("bob"), SigningKey("one").sign(claims_of()), ""):
        with pytest.raises(CallFailed, match="token_refused"):
            await ending.call("session.refresh", RefreshToken(false))

    assert await ending.refused() == "token_refused"
    await prolonged.call("account.spaces", Spaces())
    assert not [frame for frame in prolonged.waiting if isinstance(frame, Notice)]


async def test_keys_that_change_are_fetched_and_those_withdrawn_are_dropped(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    old = issuer.token()
    assert issuer.asked == 1

    issuer.keys = [*issuer.keys, SigningKey("two", "EdDSA")]
    await world.open(token=issuer.token())
    await world.open(token=old)
    assert issuer.asked == 2
    issuer.keys = [SigningKey("three", "RS256")]
    await world.open(token=issuer.token())

    assert await refusal_of(world, old) == "token_refused"


async def test_while_the_issuer_is_down_known_keys_serve_and_new_ones_are_asked_to_come_back(issuer, serving):
    server = await serving(settings_for(issuer))
    world = await signed_up(server, issuer.token())
    known = issuer.token()
    await issuer.stop()
    issuer.keys = [SigningKey("two")]

    await world.open(token=known)
    wire = await open_wire(world.port)
    await wire.send(hello_to(await wire.next(Challenge), world.port, world.account, world.device, token=issuer.token()))
    await wire.closed()
    [notice] = [frame for frame in wire.waiting if isinstance(frame, Notice)]
    assert notice.code == "issuer_unavailable"
    assert notice.retry_after_ms > 0

    await issuer.start()
    await world.open(token=issuer.token())


class KeptTasks(Tasks):
    """Tasks whose end can be waited for."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        super().__init__(group)
        self.kept = set()

    def spawn(self, *given):
        task = super().spawn(*given)
        self.kept.add(task)
        return task

    async def settled(self) -> None:
        await asyncio.wait(self.kept)


async def test_a_key_that_was_withdrawn_is_dropped_in_time_and_kept_while_the_issuer_is_down(issuer):
    ms, token = [now_ms()], issuer.token(ends_in_s=7200)
    async with asyncio.TaskGroup() as group:
        tasks = KeptTasks(group)
        verifier = Issuer(settings_for(issuer, oidc_refetch_s=10.0), tasks, lambda: ms[0])
        await verifier.verify(token)
        issuer.keys, issuer.status = [SigningKey("two")], "503 Down"

        # The keys are old now: they are fetched beside the work, which fails, and serve on.
        ms[0] += REFRESH_MS + 1
        await verifier.verify(token)
        await tasks.settled()
        await verifier.verify(token)
        issuer.status = "200 OK"
        ms[0] += 10_000
        await verifier.verify(token)
        await tasks.settled()
        ms[0] += 10_000
        with pytest.raises(TokenError):
            await verifier.verify(token)
        assert issuer.asked == 4


def test_sessions_end_at_their_time_and_not_before():
    ends, first, second = SessionEnds(), object(), object()
    ends.set(first, 5_400)
    ends.set(second, 7_000)

    assert ends.take_due(5_999) == []
    assert ends.take_due(6_000) == [first]
    ends.set(second, 9_000)
    assert ends.take_due(8_999) == []
    ends.forget(second)

    assert ends.take_due(99_000) == []
    assert len(ends) == 0


@pytest.mark.parametrize(("status", "body"), [("500 Oops", None), ("302 Found", None), ("200 OK", b"<html>")])
async def test_an_issuer_that_answers_nonsense_is_out_of_reach(issuer, serving, status, body):
    server = await serving(settings_for(issuer))
    issuer.status, issuer.body = status, body

    with pytest.raises(CallFailed, match="issuer_unavailable"):
        await signed_up(server, issuer.token())


async def test_keys_over_their_size_are_not_read(issuer, serving):
    server = await serving(settings_for(issuer))
    issuer.body = b" " * (300 << 10)

    with pytest.raises(CallFailed, match="issuer_unavailable"):
        await signed_up(server, issuer.token())


async def test_unknown_keys_have_the_issuer_asked_only_so_often(issuer, serving):
    server = await serving(settings_for(issuer, oidc_refetch_s=3600.0))
    world = await signed_up(server, issuer.token())

    for number in range(5):
        assert await refusal_of(world, SigningKey(f"made up {number}").sign(claims_of())) == "issuer_unavailable"

    assert issuer.asked == 1
    await world.open(token=issuer.token())


async def test_a_server_without_an_issuer_takes_no_token(issuer, serving):
    server = await serving(Settings(engine="memory:", port=0))
    world, token = await make_world(server), issuer.token()
    wire = await world.open()

    assert await refusal_of(world, token) == "token_refused"
    with pytest.raises(CallFailed, match="token_refused"):
        await signed_up(server, token)
    with pytest.raises(CallFailed, match="token_refused"):
        await wire.call("session.refresh", RefreshToken(token))
    with pytest.raises(CallFailed, match="token_refused"):
        await wire.call("token.open", OpenToken(token))


async def test_where_tokens_are_a_choice_sessions_without_one_have_no_end(issuer, serving):
    server = await serving(settings_for(issuer, oidc_required=False))
    world, plain = await signed_up(server, issuer.token()), await signed_up(server)

    await (await plain.open()).call("account.spaces", Spaces())
    await (await world.open()).call("account.spaces", Spaces())

    assert await refusal_of(plain, issuer.token()) == "token_refused"
    assert await refusal_of(world, issuer.token(ends_in_s=-1)) == "token_refused"


async def test_a_session_of_nobodys_shows_no_token_in_its_hello(issuer, serving):
    server = await serving(settings_for(issuer))
    wire = await open_wire(server.port)
    await wire.next(Challenge)

    await wire.send(Hello(os.urandom(32), f"ws://127.0.0.1:{server.port}", b"", b"", b"", token=issuer.token()))

    assert await wire.refused() == "token_refused"


async def test_who_may_come_in_without_an_account_may_only_ask(issuer, serving):
    server = await serving(settings_for(issuer))
    wire = await open_wire(server.port)
    await wire.next(Challenge)
    await wire.send(Hello(os.urandom(32), f"ws://127.0.0.1:{server.port}", b"", b"", b""))
    await wire.next(Welcome)

    with pytest.raises(CallFailed, match="token_refused"):
        await wire.call("token.open", OpenToken(""))
