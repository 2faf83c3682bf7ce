"""How long a device holds the account's signing key after its person gave the password."""

import os

import pytest

from twinlock.client.device_state import AccountKem
from twinlock.client.sudo import CLOCK_BACK_MS_MAX, SUDO_MS, Sudo
from twinlock.errors import SudoNeededError
from twinlock.sealing.identity import AccountKeys

KEYS = AccountKeys.make(os.urandom)
BEGAN_MS = 1_700_000_000_000


class Clock:
    def __init__(self):
        self.now_ms = BEGAN_MS


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sudo(clock):
    made = Sudo(lambda: clock.now_ms, AccountKem(KEYS.account, KEYS.kem))
    made.grant(KEYS)
    return made


def test_the_key_is_forgotten_when_the_time_is_up_and_nobody_asks_for_it(sudo):
    sudo.tend(BEGAN_MS + SUDO_MS - 1)
    assert sudo._keys is KEYS

    sudo.tend(BEGAN_MS + SUDO_MS)
    assert sudo._keys is None


@pytest.mark.parametrize("passed_ms", [0, SUDO_MS - 1])
def test_a_clock_that_is_set_back_gains_no_time(sudo, clock, passed_ms):
    clock.now_ms = BEGAN_MS + passed_ms
    assert sudo.is_granted

    clock.now_ms -= CLOCK_BACK_MS_MAX + 1
    with pytest.raises(SudoNeededError):
        sudo.keys()
    clock.now_ms = BEGAN_MS
    assert not sudo.is_granted


def test_a_clock_that_is_corrected_a_little_takes_no_time_away(sudo, clock):
    clock.now_ms -= CLOCK_BACK_MS_MAX
    assert sudo.keys() is KEYS


def test_a_service_account_holds_its_keys_for_good(sudo, clock):
    sudo.grant(KEYS, is_lasting=True)
    for now_ms in (BEGAN_MS + 100 * SUDO_MS, 0):
        clock.now_ms = now_ms
        sudo.tend(now_ms)
        assert sudo.keys() is KEYS
