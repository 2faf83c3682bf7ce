"""An identity provider that signs in as it likes, and somebody who knows the password: they get in, and no keys."""

import os

import pytest

import twinlock
from tests.client_kit import PASSWORD
from tests.issuer_kit import AUDIENCE, ISSUER, TokenIssuer
from tests.security.attackers import SECRET, Hand
from tests.security.raid import pieces, windows
from tests.security.wire import anonymous, now_ms
from twinlock.errors import ApprovalNeededError, CredentialsError, OpenError, SignatureError, TwinlockError
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import (
    AppendLog,
    KeyringRow,
    LogHead,
    Nothing,
    OpenUnlocker,
    OpenUnlockerResult,
    ReadKeyring,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.device_calls import ApprovePairing, OpenToken, OpenTokenResult
from twinlock.protocol.proofs import server_id_of
from twinlock.sealing import (
    AccountKeys,
    DeviceKeys,
    RecoveryKit,
    device_entry,
    make_unlocker,
    open_wrapped,
    unlock,
)
from twinlock.sealing.account_requests import put_request
from twinlock.server import Server, Settings


@pytest.fixture
async def served(tmp_path):
    """A server with an identity provider, and ann, who signed up by it and wrote something."""
    issuer = TokenIssuer()
    await issuer.start()
    settings = Settings(
        data=str(tmp_path / "server"),
        port=0,
        log_level="error",
        drain_ms=200,
        oidc_issuer=ISSUER,
        oidc_audience=AUDIENCE,
        oidc_jwks_url=issuer.url,
        oidc_required=True,
    )
    server = Server(settings)
    await server.start()
    options = options_of(issuer)
    async with await twinlock.sign_up(server.url, "ann", profile=tmp_path / "a", options=options) as ann:
        await (await ann.space("home").collection("notes").doc("shed").set({"text": SECRET})).durable()
        yield issuer, server, ann
    await server.stop()
    await issuer.stop()


def options_of(issuer):
    """An application whose users the issuer signs in, whoever they are."""

    async def token():
        return issuer.token("ann")

    return twinlock.Options(token=token)


async def as_nobody_may(wire, account, entries, space, server_id) -> None:
    """Try everything that would lead from a sign-in to keys, by a session without a device."""
    mole, own = DeviceKeys.make(os.urandom), AccountKeys.make(os.urandom)
    state = replay_account(entries)
    added = device_entry(own, state, mole.sign_pk, mole.kem_pk)
    with pytest.raises(SignatureError):
        await wire.call("account.append", AppendLog(account, state.seq, [added]), LogHead)
    with pytest.raises(TwinlockError):
        await wire.call("space.keyring", ReadKeyring(space), KeyringRow)
    unlocker = make_unlocker(RecoveryKit.make(os.urandom), "ann", server_id, os.urandom, own)
    with pytest.raises(TwinlockError):
        await wire.call("unlocker.put", put_request(own, server_id, state, now_ms(), unlocker), Nothing)
    with pytest.raises(TwinlockError):
        await wire.call("pairing.approve", ApprovePairing(mole.device, os.urandom(96)), Nothing)
    with pytest.raises(TwinlockError):
        await wire.attach(space)


async def test_an_identity_provider_signs_in_and_gets_no_keys(served, tmp_path):
    issuer, server, ann = served
    hand = Hand(ann, "home")
    with pytest.raises(ApprovalNeededError):
        await twinlock.sign_in(server.url, profile=tmp_path / "evil", options=options_of(issuer))
    assert not (tmp_path / "evil").exists()
    async with anonymous(server.url) as wire:
        # What it gets: the account, its name and its log.
        opened = await wire.call("token.open", OpenToken(issuer.token("ann")), OpenTokenResult)
        assert (opened.account, opened.name) == (hand.account, "ann")
        answered = set(pieces([entry.body for entry in opened.entries]))
        assert [name for name, key in hand.secrets().items() if key in windows(answered)] == []

        await as_nobody_may(wire, opened.account, opened.entries, hand.space, server_id_of(wire.challenge.server_pk))

    assert len(await ann.devices()) == 1
    # The kit is still the true one: the identity provider has not put another in its place.
    async with await twinlock.sign_in(
        server.url, profile=tmp_path / "true", kit=ann.recovery_kit(), options=options_of(issuer)
    ) as second:
        await second.synced()
        assert await second.space("home").collection("notes").doc("shed").get() == {"text": SECRET}


async def test_an_identity_provider_cannot_pass_for_a_device(served):
    """A token together with a device that nobody certified, or with ann's and a signature of one's own."""
    issuer, server, ann = served
    hand = Hand(ann, "home")
    hand.device = DeviceKeys.make(os.urandom)
    with pytest.raises(TwinlockError) as refused:
        async with hand.wire(server.url):
            pass
    assert refused.value.code in ("unknown_device", "proof_refused", "token_refused", "token_invalid")
    async with anonymous(server.url) as wire:
        opened = await wire.call("token.open", OpenToken(issuer.token("ann")), OpenTokenResult)
        with pytest.raises(TwinlockError):
            await wire.lease(hand.lease_request(1))
    assert opened.account == hand.account


async def test_who_knows_the_password_signs_in_and_gets_no_keys(account_world, tmp_path):
    ann = await account_world.device("a")
    hand = Hand(ann, "home")
    with pytest.raises(ApprovalNeededError):
        await twinlock.sign_in(account_world.url, "ann", PASSWORD, profile=tmp_path / "evil")
    async with anonymous(account_world.url) as wire:
        server_id = server_id_of(wire.challenge.server_pk)
        params = await wire.call("unlocker.params", UnlockerParams("ann", "password"), UnlockerParamsResult)
        keys = unlock(params, PASSWORD, "ann", server_id)
        # What they get: the sign-in, and the account's log; nothing lies wrapped under the password.
        request = OpenUnlocker("ann", "password", keys.auth_key)
        opened = await wire.call("unlocker.open", request, OpenUnlockerResult)
        assert (opened.account, opened.wrapped) == (hand.account, b"")
        with pytest.raises(CredentialsError):
            await wire.call("unlocker.open", OpenUnlocker("ann", "recovery_kit", keys.auth_key), OpenUnlockerResult)

        await as_nobody_may(wire, opened.account, opened.entries, hand.space, server_id)

    # The control: the kit has what the password has not; what lies wrapped by it does not open by the password.
    async with anonymous(account_world.url) as wire:
        kit = RecoveryKit.parse(account_world.kit)
        kit_params = await wire.call("unlocker.params", UnlockerParams("ann", "recovery_kit"), UnlockerParamsResult)
        kit_keys = unlock(kit_params, kit, "ann", server_id)
        wrapped = await wire.call(
            "unlocker.open", OpenUnlocker("ann", "recovery_kit", kit_keys.auth_key), OpenUnlockerResult
        )
    assert open_wrapped(kit_keys, kit, wrapped.account, wrapped.wrapped).account == hand.account
    for secret in (PASSWORD, kit):
        with pytest.raises((OpenError, CredentialsError)):
            open_wrapped(keys, secret, wrapped.account, wrapped.wrapped)
    assert len(await ann.devices()) == 2
