"""Codes, digits and what is sealed from one device of an account to another, with everything that must be refused."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.unit.sealing_world import Person, SeededEntropy, flipped
from twinlock.errors import (
    LimitExceededError,
    OpenError,
    PairingRefusedError,
    PairingUnknownError,
    RecoveryKitError,
)
from twinlock.ids import DeviceId
from twinlock.protocol.account_log import device_id_of, replay_account
from twinlock.sealing import (
    AccountKeys,
    DeviceKeys,
    RecoveryKit,
    check_device_keys,
    kit_qr,
    open_account_keys,
    open_device_name,
    open_parcel,
    pairing_code,
    pairing_digits,
    pairing_qr,
    parse_pairing,
    rekem_entry,
    revoke_entry,
    seal_account_keys,
    seal_device_name,
    seal_parcel,
)

ENTROPY = SeededEntropy("pairing")
SERVER = bytes(range(32))
ORIGIN = "wss://sync.example:443"


@pytest.fixture
def person():
    return Person("pairing")


@pytest.fixture
def newcomer():
    return DeviceKeys.make(ENTROPY)


def test_a_code_is_sixteen_letters_of_the_device_s_id():
    device = DeviceId(bytes.fromhex("00010203040506070809") + bytes(6))

    assert pairing_code(device) == "000G-40R4-0M30-E209"
    assert parse_pairing(" ooog 40r4 om3o-e2o9 ").prefix == device[:10]


@pytest.mark.parametrize("text", ["", "000G-40R4-0M30-E20", "000G-40R4-0M30-E209-0", "UUUU-UUUU-UUUU-UUUU"])
def test_what_is_no_code_is_refused(text):
    with pytest.raises(PairingUnknownError):
        parse_pairing(text)


def test_a_qr_text_names_the_server_and_the_whole_id(newcomer):
    text = pairing_qr(ORIGIN, SERVER, newcomer.device)

    ticket = parse_pairing(f"{text}\n")

    assert text.startswith("twinlock:pair?origin=wss://sync.example:443&server=AAEC")
    assert (ticket.prefix, ticket.server_id, ticket.origin) == (newcomer.device, SERVER, ORIGIN)


@pytest.mark.parametrize(
    ("old", "new"), [("origin=", "o="), ("&device=", "&device=AA"), ("server=A", "server=*"), ("&", "?")]
)
def test_a_damaged_qr_text_is_refused(newcomer, old, new):
    text = pairing_qr(ORIGIN, SERVER, newcomer.device)

    with pytest.raises(PairingUnknownError):
        parse_pairing(text.replace(old, new))


def test_the_code_proves_the_keys(newcomer):
    other = DeviceKeys.make(ENTROPY)
    for text in (pairing_code(newcomer.device), pairing_qr(ORIGIN, SERVER, newcomer.device)):
        ticket = parse_pairing(text)

        assert check_device_keys(ticket, newcomer.sign_pk, newcomer.kem_pk) == newcomer.device
        for keys in (
            (other.sign_pk, other.kem_pk),
            (newcomer.sign_pk, other.kem_pk),
            (newcomer.sign_pk, newcomer.kem_pk + b"\0"),
            (newcomer.sign_pk, bytes(32)),
        ):
            with pytest.raises(PairingRefusedError):
                check_device_keys(ticket, *keys)


def test_a_device_of_a_key_that_hides_nothing_is_refused():
    """A device may show the code of such a key: whatever was sealed to it would open for everybody."""
    sign_pk, kem_pk = DeviceKeys.make(ENTROPY).sign_pk, bytes(32)
    ticket = parse_pairing(pairing_code(device_id_of(sign_pk, kem_pk)))

    with pytest.raises(PairingRefusedError):
        check_device_keys(ticket, sign_pk, kem_pk)


def test_the_digits_tell_account_and_device_apart(person, newcomer):
    digits = pairing_digits(person.keys.account, newcomer.device)

    assert [len(group) for group in digits.split(" ")] == [5] * 12
    assert digits.replace(" ", "").isdecimal()
    assert digits != pairing_digits(Person("another").keys.account, newcomer.device)
    assert digits != pairing_digits(person.keys.account, person.device.device)


def test_the_account_s_keys_reach_the_certified_device_only(person, newcomer):
    person.certify(newcomer)
    sealed = seal_account_keys(person.keys, newcomer.device, newcomer.kem_pk)

    assert open_account_keys(sealed, newcomer, person.state).expose() == person.keys.expose()
    stranger = DeviceKeys.make(ENTROPY)
    with pytest.raises(PairingRefusedError):
        open_account_keys(sealed, stranger, person.state)
    with pytest.raises(PairingRefusedError):
        open_account_keys(sealed, person.device, person.state)
    with pytest.raises(PairingRefusedError):
        open_account_keys(flipped(sealed, 40), newcomer, person.state)


def test_keys_that_the_log_does_not_name_are_refused(person, newcomer):
    """Base mode of HPKE does not say who sealed: anybody may send keys to a device, of this account or another."""
    person.certify(newcomer)
    for keys in (
        Person("another").keys,
        AccountKeys(person.keys.expose()[:32] + ENTROPY(32)),
    ):
        info_of_this_account = seal_account_keys(keys, newcomer.device, newcomer.kem_pk)
        with pytest.raises(PairingRefusedError):
            open_account_keys(info_of_this_account, newcomer, person.state)


def test_a_revoked_device_takes_no_keys(person, newcomer):
    person.certify(newcomer)
    sealed = seal_account_keys(person.keys, newcomer.device, newcomer.kem_pk)
    state = replay_account([revoke_entry(person.keys, person.state, newcomer.device)], person.state)

    with pytest.raises(PairingRefusedError):
        open_account_keys(sealed, newcomer, state)


def test_a_parcel_holds_the_key_that_the_log_names(person):
    kem = X25519PrivateKey.from_private_bytes(ENTROPY(32))
    account, device = person.keys.account, person.device
    entry = rekem_entry(person.keys, person.state, kem.public_key().public_bytes_raw())
    state = replay_account([entry], person.state)
    sealed = seal_parcel(kem, account, device.device, device.kem_pk)

    opened = open_parcel(sealed, device, state)

    assert opened.private_bytes_raw() == kem.private_bytes_raw()
    assert person.keys.with_kem(opened).kem_pk == state.kem_pk
    with pytest.raises(OpenError):
        open_parcel(sealed, device, person.state)
    with pytest.raises(OpenError):
        open_parcel(sealed, DeviceKeys.make(ENTROPY), state)
    forged = seal_parcel(X25519PrivateKey.generate(), account, device.device, device.kem_pk)
    with pytest.raises(OpenError):
        open_parcel(forged, device, state)


def test_a_device_s_name_opens_for_its_account_and_place_only(person, newcomer):
    kem, account, device = person.keys.kem, person.keys.account, person.device.device
    sealed = seal_device_name(kem, account, device, "Ann’s phone", ENTROPY)
    long = seal_device_name(kem, account, device, "x" * 127, ENTROPY)

    assert open_device_name(kem, account, device, sealed) == "Ann’s phone"
    assert len(sealed) == len(long)
    for key, owner, place in (
        (newcomer.kem, account, device),
        (kem, Person("another").keys.account, device),
        (kem, account, newcomer.device),
    ):
        with pytest.raises(OpenError):
            open_device_name(key, owner, place, sealed)
    with pytest.raises(LimitExceededError):
        seal_device_name(kem, account, device, "x" * 128, ENTROPY)


def test_a_kit_is_read_from_its_qr_text():
    kit = RecoveryKit.make(ENTROPY)
    text = kit_qr(kit, ORIGIN, SERVER, "ann+work@example")

    assert "&name=ann%2Bwork@example&kit=" in text
    assert RecoveryKit.parse(text).expose() == kit.expose()
    with pytest.raises(RecoveryKitError):
        RecoveryKit.parse(text.replace("kit=", "kat="))
