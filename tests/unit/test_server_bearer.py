"""Bearer tokens: whose they are, how long they hold, and that nobody makes one."""

import base64
import os

import pytest

from twinlock.errors import BearerError
from twinlock.protocol.limits import HTTP_TOKEN_TTL_MS
from twinlock.server.bearer import Bearers
from twinlock.server.secrets_file import make_secrets

ACCOUNT, DEVICE = os.urandom(16), os.urandom(16)
NOW = 1_800_000_000_000


def test_a_token_holds_for_its_time_and_not_longer():
    bearers = Bearers(os.urandom(32))
    token = bearers.issue(ACCOUNT, DEVICE, NOW)

    assert token.expires_ms == NOW + HTTP_TOKEN_TTL_MS
    assert bearers.holder(f"Bearer {token.token}", token.expires_ms - 1) == (ACCOUNT, DEVICE)
    with pytest.raises(BearerError):
        bearers.holder(f"Bearer {token.token}", token.expires_ms)
    assert HTTP_TOKEN_TTL_MS == 15 * 60 * 1000


def test_a_token_ends_with_the_session_that_asked():
    bearers = Bearers(os.urandom(32))

    assert bearers.issue(ACCOUNT, DEVICE, NOW, NOW + 5_000).expires_ms == NOW + 5_000
    assert bearers.issue(ACCOUNT, DEVICE, NOW, NOW + 10**9).expires_ms == NOW + HTTP_TOKEN_TTL_MS


def test_every_server_with_the_same_secrets_takes_it_and_no_other():
    secrets = make_secrets()
    token = Bearers(secrets.bearer_key).issue(ACCOUNT, DEVICE, NOW).token

    assert Bearers(secrets.bearer_key).holder(f"Bearer {token}", NOW) == (ACCOUNT, DEVICE)
    for other in (secrets.ticket_key, make_secrets().bearer_key):
        with pytest.raises(BearerError):
            Bearers(other).holder(f"Bearer {token}", NOW)


def test_no_bit_of_a_token_can_be_changed():
    bearers = Bearers(os.urandom(32))
    data = base64.urlsafe_b64decode(bearers.issue(ACCOUNT, DEVICE, NOW).token)

    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(BearerError):
            bearers.holder(f"Bearer {base64.urlsafe_b64encode(changed).decode()}", NOW)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer x", "Basic " + "A" * 96, "Bearer " + "é" * 96, "Bearer " + "\n" * 96]
)
def test_what_is_no_token_is_refused(header):
    with pytest.raises(BearerError):
        Bearers(os.urandom(32)).holder(header, NOW)


def test_a_token_is_not_shown_by_accident():
    token = Bearers(os.urandom(32)).issue(ACCOUNT, DEVICE, NOW)

    assert token.token not in repr(token)
