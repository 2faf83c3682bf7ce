"""Every Python block of the guides runs, from the first to the last, against a real server."""

import pytest

import twinlock
from tests.client_kit import until
from tests.docs.test_docs_code import blocks_of, run_fragment
from tests.issuer_kit import AUDIENCE, ISSUER, TokenIssuer
from twinlock.errors import DeviceRevokedError
from twinlock.server import Server, Settings

WRITTEN_URL = "ws://127.0.0.1:8765"


@pytest.fixture
async def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running = Server(Settings(data="server", port=0, log_level="error", drain_ms=100))
    await running.start()
    yield running
    await running.stop()


async def play(page, url, **names):
    """Run a page's blocks in one namespace, as a person types them, and return what is there at the end."""
    parts = blocks_of(page)
    assert parts
    for part in parts:
        await run_fragment(part.replace(WRITTEN_URL, url), names)
    return names


async def close_all(names):
    for value in names.values():
        if isinstance(value, twinlock.Client):
            await value.close()


async def test_sharing_a_space_goes_as_its_guide_says(server, capsys):
    names = await play("docs/guides/share-a-space.md", server.url)
    ben, cleo = names["ben"], names["cleo"]

    await until(lambda: [str(end.reason) for end in ben.ended_spaces()] == ["removed"])
    await until(lambda: [str(end.reason) for end in cleo.ended_spaces()] == ["shredded"])
    assert [str(end.reason) for end in names["ann"].ended_spaces()] == ["shredded"]
    printed = capsys.readouterr().out
    assert "Ann sees ['Lisbon']" in printed
    assert "approval_pending\ncleo reader\n" in printed
    await close_all(names)


async def test_pairing_and_losing_a_phone_goes_as_its_guide_says(server, tmp_path):
    names = await play("docs/guides/pair-a-phone.md", server.url)

    devices = {device.name: device.revoked for device in await names["laptop"].devices() if not device.this}
    assert devices["Ann's phone"]
    assert names["laptop"].space("home").title == "home"
    await until(lambda: not (tmp_path / "phone" / "vault.db").exists())
    await close_all(names)
    with pytest.raises(DeviceRevokedError):
        await twinlock.connect(profile="phone")


async def test_workers_and_sensors_go_as_their_guide_says(server, capsys):
    names = await play("docs/guides/workers-and-sensors.md", server.url)

    printed = ""

    def has_both():
        nonlocal printed
        printed += capsys.readouterr().out
        return "21.5" in printed and "93" in printed

    await until(has_both)
    assert "0 orders" in printed
    assert names["sent"].own_prefix == names["sensor"].account
    await close_all(names)


async def test_a_sign_in_of_ones_own_goes_as_its_guide_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    issuer = TokenIssuer()
    await issuer.start()
    settings = Settings(
        data="server", port=0, log_level="error", drain_ms=100,
        oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks_url=issuer.url, oidc_required=True,
    )  # fmt: skip
    running = Server(settings)
    await running.start()

    async def fetch_token():
        return issuer.token("ann", 300)

    names = await play(
        "docs/guides/own-sign-in.md", running.url, twinlock=twinlock, URL=running.url, fetch_token=fetch_token
    )
    db = names["db"]
    await until(lambda: db.is_connected)
    devices = await db.devices()
    await close_all(names)
    await running.stop()
    await issuer.stop()

    assert len(devices) == 2
