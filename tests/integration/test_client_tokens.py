"""The application's own sign-in through the SDK: tokens instead of passwords, fresh ones in time, no keys by them."""

import pytest

import twinlock
from tests.client_kit import until
from tests.issuer_kit import AUDIENCE, ISSUER, TokenIssuer
from twinlock.client import token_times
from twinlock.errors import (
    ApprovalNeededError,
    CredentialsError,
    NameTakenError,
    PasswordError,
    SudoNeededError,
    TokenError,
)
from twinlock.server import Server, Settings


@pytest.fixture
async def issuer():
    running = TokenIssuer()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def server(issuer, tmp_path):
    settings = Settings(
        data=str(tmp_path / "server"),
        port=0,
        log_level="error",
        drain_ms=200,
        oidc_issuer=ISSUER,
        oidc_audience=AUDIENCE,
        oidc_jwks_url=issuer.url,
        oidc_required=True,
        oidc_leeway_s=0.0,
    )
    running = Server(settings)
    await running.start()
    yield running
    await running.stop()


class SignIn:
    """The application's side: it signs somebody in, and counts how often it is asked for a token."""

    def __init__(self, issuer, subject="ann", ends_in_s=300.0):
        self.issuer, self.subject, self.ends_in_s = issuer, subject, ends_in_s
        self.asked = 0

    async def token(self):
        self.asked += 1
        return self.issuer.token(self.subject, self.ends_in_s)

    @property
    def options(self):
        return twinlock.Options(token=self.token)


async def test_an_account_without_a_password_whose_keys_come_by_kit_or_approval(issuer, server, tmp_path):
    sign_in = SignIn(issuer)
    async with await twinlock.sign_up(server.url, "Ann", profile=tmp_path / "a", options=sign_in.options) as first:
        kit = first.recovery_kit()
        with pytest.raises(ApprovalNeededError):
            await twinlock.sign_in(server.url, profile=tmp_path / "b", options=sign_in.options)
        assert not (tmp_path / "b").exists()
        async with await twinlock.sign_in(
            server.url, profile=tmp_path / "b", kit=kit, options=sign_in.options
        ) as second:
            assert (second.name, second.account) == ("ann", first.account)
            # It kept no signing key: nobody chose what would unlock it.
            second._sudo.drop()
            with pytest.raises(SudoNeededError):
                await second.unlock("anything at all")
        request = await twinlock.pair_device(server.url, tmp_path / "c", options=sign_in.options)
        await first.pair_device(request.code)
        await request.approved()
        async with await request.confirm("for this device") as third:
            await third.unlock("for this device")
            assert len(await third.devices()) == 3


async def test_a_password_then_only_unlocks_the_device_and_never_reaches_the_server(issuer, server, tmp_path):
    sign_in = SignIn(issuer)
    async with await twinlock.sign_up(
        server.url, "ann", "for this device", tmp_path / "a", options=sign_in.options
    ) as db:
        await db.unlock("for this device")
    with pytest.raises(CredentialsError):
        await twinlock.sign_in(server.url, "ann", "for this device", tmp_path / "b")


async def test_signing_up_takes_a_password_or_a_token(server, tmp_path):
    with pytest.raises(PasswordError):
        await twinlock.sign_up(server.url, "ann", profile=tmp_path / "a")
    with pytest.raises(TokenError):
        await twinlock.sign_up(server.url, "ann", "correct horse", tmp_path / "a")
    with pytest.raises(CredentialsError):
        await twinlock.sign_in(server.url, profile=tmp_path / "a")
    assert not (tmp_path / "a").exists()


async def test_a_subject_has_one_account_and_none_before_it_signed_up(issuer, server, tmp_path):
    sign_in = SignIn(issuer)
    with pytest.raises(CredentialsError):
        await twinlock.sign_in(server.url, profile=tmp_path / "a", options=sign_in.options)
    async with await twinlock.sign_up(server.url, "ann", profile=tmp_path / "a", options=sign_in.options):
        pass
    with pytest.raises(NameTakenError):
        await twinlock.sign_up(server.url, "ann2", profile=tmp_path / "b", options=sign_in.options)


async def test_each_connection_brings_a_fresh_token_and_none_opens_nothing(issuer, server, tmp_path):
    sign_in = SignIn(issuer)
    await (await twinlock.sign_up(server.url, "ann", profile=tmp_path / "a", options=sign_in.options)).close()
    before = sign_in.asked

    async with await twinlock.connect(profile=tmp_path / "a", options=sign_in.options) as db:
        assert db.is_connected
        assert sign_in.asked == before + 1
    async with await twinlock.connect(profile=tmp_path / "a") as db:
        assert not db.is_connected
        assert isinstance(db.last_error, TokenError)
        # What is on the device is the person's, with or without the identity provider.
        assert [space.title for space in db.spaces()] == ["home"]


async def test_a_token_is_replaced_before_it_ends(issuer, server, tmp_path, monkeypatch):
    monkeypatch.setattr(token_times, "RETRY_S_MIN", 0.05)
    sign_in = SignIn(issuer, ends_in_s=1.0)
    async with await twinlock.sign_up(server.url, "ann", profile=tmp_path / "a", options=sign_in.options) as db:
        seen, asked = [], sign_in.asked
        db.on_status(seen.append)

        await until(lambda: sign_in.asked >= asked + 4)

        assert seen == []
        assert db.is_connected


async def test_an_application_that_has_no_token_is_asked_again(issuer, server, tmp_path):
    sign_in = SignIn(issuer)
    await (await twinlock.sign_up(server.url, "ann", profile=tmp_path / "a", options=sign_in.options)).close()
    faults = [RuntimeError("the identity provider is out of reach")]

    async def unsteady():
        if faults:
            raise faults.pop()
        return await sign_in.token()

    async with await twinlock.connect(profile=tmp_path / "a", options=twinlock.Options(token=unsteady)) as db:
        await until(lambda: db.is_connected)


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.!!.c", "a.e30.c", "a.W10.c", "a.eyJleHAiOiJ4In0.c"])
def test_a_token_that_does_not_tell_its_end_is_never_replaced(token):
    assert token_times.refresh_after_s(token, 0) is None


def test_a_token_is_replaced_a_minute_before_its_end_or_at_half_of_what_is_left(issuer):
    issued = SignIn(issuer)
    now_ms = twinlock.Options().wall_ms()
    for left_s, wanted_s in ((3600, 3540), (100, 50), (1, 5), (10**7, 86_400)):
        issued.ends_in_s = left_s
        assert token_times.refresh_after_s(issuer.token(ends_in_s=left_s), now_ms) == pytest.approx(wanted_s, abs=1)


async def test_an_application_that_gives_no_token_is_told_so_before_anything_is_made(server, tmp_path):
    async def fails():
        raise RuntimeError("the identity provider is away")

    async def forgets():
        return None

    for token in (fails, forgets):
        with pytest.raises(TokenError, match="the application gave none"):
            await twinlock.sign_up(server.url, "ann", profile=tmp_path / "p", options=twinlock.Options(token=token))

    assert not (tmp_path / "p").exists()
