"""Passwords, recovery kits and the sealed records of a device."""

import pickle

import pytest

from tests.unit.sealing_world import Person, SeededEntropy, flipped
from twinlock.errors import (
    CredentialsError,
    NameInvalidError,
    PasswordError,
    RecoveryKitError,
    StoreDamagedError,
    StoreKeyError,
    WeakParametersError,
)
from twinlock.protocol.calls import Unlocker, UnlockerParamsResult
from twinlock.sealing import (
    AccountKeys,
    DataKey,
    MemberKey,
    RecoveryKit,
    ServiceKey,
    StoreKey,
    make_unlocker,
    open_record,
    open_store_key,
    open_sudo,
    open_wrapped,
    seal_record,
    seal_store_key,
    seal_sudo,
    unlock,
)
from twinlock.sealing.vault import PASSWORD_ITERATIONS_MAX, PASSWORD_ITERATIONS_MIN

SERVER = bytes(range(32))
QUICK = 10
"""Few iterations, so that the tests are quick; clients refuse them by default."""

ENTROPY = SeededEntropy("vault")
PERSON = Person("vault")
KIT = RecoveryKit.make(ENTROPY)
STORE_KEY = StoreKey.make(ENTROPY)


def params_of(unlocker: Unlocker) -> UnlockerParamsResult:
    return UnlockerParamsResult(unlocker.kdf, unlocker.salt, unlocker.iterations)


def test_a_kit_brings_the_account_s_keys_back():
    unlocker = make_unlocker(KIT, "mia", SERVER, ENTROPY, PERSON.keys)
    typed = RecoveryKit.parse(str(KIT))

    keys = unlock(params_of(unlocker), typed, "Mia", SERVER)

    assert keys.auth_key == unlocker.auth_key
    assert open_wrapped(keys, typed, PERSON.keys.account, unlocker.wrapped).expose() == PERSON.keys.expose()


def test_another_kit_opens_nothing():
    unlocker = make_unlocker(KIT, "mia", SERVER, ENTROPY, PERSON.keys)
    other = RecoveryKit.make(ENTROPY)

    keys = unlock(params_of(unlocker), other, "mia", SERVER)

    assert keys.auth_key != unlocker.auth_key
    with pytest.raises(CredentialsError):
        open_wrapped(keys, other, PERSON.keys.account, unlocker.wrapped)


def test_a_kit_s_letters_are_read_as_people_type_them():
    letters = str(KIT)

    assert len(letters.replace("-", "")) == 28
    for typed in (letters.lower(), letters.replace("-", " "), letters.replace("-", ""), f"  {letters} "):
        assert RecoveryKit.parse(typed).expose() == KIT.expose()
    misread = letters.replace("1", "l").replace("0", "o")
    assert RecoveryKit.parse(misread).expose() == KIT.expose()


@pytest.mark.parametrize("place", range(28))
def test_a_mistyped_letter_is_noticed(place):
    letters = str(KIT).replace("-", "")
    wrong = "Z" if letters[place] != "Z" else "Y"

    with pytest.raises(RecoveryKitError):
        RecoveryKit.parse(letters[:place] + wrong + letters[place + 1 :])


@pytest.mark.parametrize("text", ["", "ABCD", str(KIT)[:-1], str(KIT) + "A", str(KIT)[:-1] + "U", "é" * 28])
def test_what_is_no_kit_is_refused(text):
    with pytest.raises(RecoveryKitError):
        RecoveryKit.parse(text)


def test_a_password_signs_in_and_opens_nothing_by_default():
    unlocker = make_unlocker("correct horse", "mia", SERVER, ENTROPY, iterations=QUICK)

    keys = unlock(params_of(unlocker), "correct horse", "mia", SERVER, iterations_min=QUICK)

    assert keys.auth_key == unlocker.auth_key
    assert unlocker.wrapped == b""


def test_a_password_opens_data_where_the_application_asks_for_it():
    secret = "correct horse battery"
    unlocker = make_unlocker(secret, "mia", SERVER, ENTROPY, PERSON.keys, iterations=QUICK)

    keys = unlock(params_of(unlocker), secret, "mia", SERVER, iterations_min=QUICK)

    assert open_wrapped(keys, secret, PERSON.keys.account, unlocker.wrapped).account == PERSON.keys.account


def test_a_wrong_password_gives_other_keys_and_opens_nothing():
    unlocker = make_unlocker("correct horse battery", "mia", SERVER, ENTROPY, PERSON.keys, iterations=QUICK)

    keys = unlock(params_of(unlocker), "correct horse buttery", "mia", SERVER, iterations_min=QUICK)

    assert keys.auth_key != unlocker.auth_key
    with pytest.raises(CredentialsError):
        open_wrapped(keys, "correct horse buttery", PERSON.keys.account, unlocker.wrapped)


def test_a_password_s_form_of_unicode_does_not_matter():
    composed, decomposed = "pässwörd ﬁne", "pässwörd fine"
    unlocker = make_unlocker(composed, "mia", SERVER, ENTROPY, iterations=QUICK)

    assert unlock(params_of(unlocker), decomposed, "mia", SERVER, QUICK).auth_key == unlocker.auth_key


@pytest.mark.parametrize(("name", "server"), [("mio", SERVER), ("mia", bytes(32))])
def test_the_keys_of_a_password_belong_to_one_name_at_one_server(name, server):
    unlocker = make_unlocker("correct horse", "mia", SERVER, ENTROPY, iterations=QUICK)

    assert unlock(params_of(unlocker), "correct horse", name, server, QUICK).auth_key != unlocker.auth_key


@pytest.mark.parametrize(("password", "opens"), [("1234567", None), ("ﬁ" * 3, None), ("13 letters ab", PERSON.keys)])
def test_a_short_password_is_refused(password, opens):
    with pytest.raises(PasswordError):
        make_unlocker(password, "mia", SERVER, ENTROPY, opens, iterations=QUICK)


@pytest.mark.parametrize(
    ("kdf", "salt", "iterations"),
    [
        ("pbkdf2-sha256", bytes(16), PASSWORD_ITERATIONS_MIN - 1),
        ("pbkdf2-sha256", bytes(16), 0),
        ("pbkdf2-sha256", bytes(16), PASSWORD_ITERATIONS_MAX + 1),
        ("pbkdf2-sha256", bytes(15), PASSWORD_ITERATIONS_MIN),
        ("hkdf-sha256", bytes(16), 0),
        ("none", bytes(16), PASSWORD_ITERATIONS_MIN),
    ],
)
def test_parameters_below_the_client_s_minimum_are_refused(kdf, salt, iterations):
    with pytest.raises(WeakParametersError):
        unlock(UnlockerParamsResult(kdf, salt, iterations), "correct horse", "mia", SERVER)


def test_a_kit_is_not_derived_like_a_password():
    with pytest.raises(WeakParametersError):
        unlock(UnlockerParamsResult("pbkdf2-sha256", bytes(16), 1_000_000), KIT, "mia", SERVER)


def test_the_default_is_a_million_iterations():
    unlocker = make_unlocker("correct horse", "mia", SERVER, ENTROPY)

    assert unlocker.iterations == PASSWORD_ITERATIONS_MIN == 1_000_000


@pytest.mark.parametrize("name", ["", "a b", "ä", "\u212aelvin", "a" * 129, "mia\n"])
def test_names_with_other_characters_are_refused(name):
    with pytest.raises(NameInvalidError):
        make_unlocker(KIT, name, SERVER, ENTROPY)


def test_keys_wrapped_for_one_account_are_not_taken_for_another():
    unlocker = make_unlocker(KIT, "mia", SERVER, ENTROPY, PERSON.keys)
    keys = unlock(params_of(unlocker), KIT, "mia", SERVER)

    with pytest.raises(CredentialsError):
        open_wrapped(keys, KIT, Person("other").keys.account, unlocker.wrapped)


def test_a_record_comes_back_under_its_name_only():
    sealed = seal_record(STORE_KEY, "device", b"keys", ENTROPY)

    assert open_record(STORE_KEY, "device", sealed) == b"keys"
    with pytest.raises(StoreDamagedError):
        open_record(STORE_KEY, "account", sealed)
    with pytest.raises(StoreDamagedError):
        open_record(StoreKey.make(ENTROPY), "device", sealed)


def test_a_record_with_any_altered_byte_is_refused():
    sealed = seal_record(STORE_KEY, "device", b"keys", ENTROPY)

    for position in range(len(sealed)):
        with pytest.raises(StoreDamagedError):
            open_record(STORE_KEY, "device", flipped(sealed, position))
    with pytest.raises(StoreDamagedError):
        open_record(STORE_KEY, "device", sealed[:20])


def test_sudo_takes_the_passphrase_and_this_device_s_store():
    record = seal_sudo(STORE_KEY, "correct horse", PERSON.keys, ENTROPY, QUICK)
    account = PERSON.keys.account

    assert open_sudo(STORE_KEY, "correct horse", account, record).expose() == PERSON.keys.expose()
    with pytest.raises(CredentialsError):
        open_sudo(STORE_KEY, "correct house", account, record)
    with pytest.raises(CredentialsError):
        open_sudo(StoreKey.make(ENTROPY), "correct horse", account, record)
    with pytest.raises(StoreDamagedError):
        open_sudo(STORE_KEY, "correct horse", account, record[:-1])


def test_a_store_key_can_be_sealed_by_a_passphrase():
    record = seal_store_key(STORE_KEY, "correct horse", ENTROPY, QUICK)

    assert open_store_key("correct horse", record) == STORE_KEY
    with pytest.raises(StoreKeyError):
        open_store_key("correct house", record)
    with pytest.raises(StoreDamagedError):
        open_store_key("correct horse", b"nothing")


RAW = bytes(range(100, 132))
SECRETS = [
    MemberKey(RAW),
    ServiceKey(RAW),
    DataKey(RAW),
    StoreKey(RAW),
    AccountKeys(RAW + RAW),
    PERSON.device,
    RecoveryKit(RAW[:16]),
    unlock(UnlockerParamsResult("hkdf-sha256", bytes(16), 0), KIT, "mia", SERVER),
]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: type(secret).__name__)
def test_secrets_hide_their_bytes(secret):
    shown = [repr(secret), f"{secret!r}", f"{[secret]}"]
    if not isinstance(secret, RecoveryKit):
        shown += [str(secret), f"{secret}", format(secret, "")]

    assert all("hidden" in text and "\\x" not in text and RAW.hex() not in text for text in shown)
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_secrets_of_different_kinds_are_never_equal():
    assert MemberKey(RAW) == MemberKey(RAW)
    assert MemberKey(RAW) != ServiceKey(RAW)
    with pytest.raises(TypeError):
        hash(MemberKey(RAW))
    with pytest.raises(ValueError, match="a key of 31 bytes"):
        MemberKey(RAW[:31])
