"""Proofs between device, server and key service: every part of what is signed counts."""

import pytest

from tests.unit.sealing_world import Person
from twinlock.errors import NameInvalidError, SignatureError
from twinlock.ids import AccountId, DeviceId, Epoch, Incarnation, SpaceId
from twinlock.protocol import proofs
from twinlock.protocol.names import account_name

SIXTEEN, THIRTY_TWO = bytes(16), bytes(32)
OTHER_SIXTEEN, OTHER_THIRTY_TWO = b"\x01" * 16, b"\x01" * 32

HELLO = (
    THIRTY_TWO,
    "wss://a.example:443",
    Incarnation(SIXTEEN),
    AccountId(SIXTEEN),
    DeviceId(SIXTEEN),
    THIRTY_TWO,
    THIRTY_TWO,
)
LEASE = (SpaceId(SIXTEEN), [Epoch(1), Epoch(2)], THIRTY_TWO, 5, AccountId(SIXTEEN), DeviceId(SIXTEEN))
PENDING = (SpaceId(SIXTEEN), Epoch(1), THIRTY_TWO, 5, AccountId(SIXTEEN), DeviceId(SIXTEEN))
INFO = (SpaceId(SIXTEEN), Epoch(1), DeviceId(SIXTEEN), 5, Incarnation(SIXTEEN), THIRTY_TWO)
WELCOME = (THIRTY_TWO, Incarnation(SIXTEEN), THIRTY_TWO, THIRTY_TWO, SIXTEEN)

MADE = [
    (proofs.hello_message, HELLO),
    (proofs.welcome_message, WELCOME),
    (proofs.lease_message, LEASE),
    (proofs.pending_message, PENDING),
    (proofs.lease_info, INFO),
]


def other(part):
    """Return another value of the same form."""
    match part:
        case str():
            return "wss://b.example:443"
        case int():
            return part + 1
        case list():
            return [Epoch(1)]
    return OTHER_SIXTEEN if len(part) == 16 else OTHER_THIRTY_TWO


@pytest.mark.parametrize(
    ("make", "parts", "index"),
    [(make, parts, index) for make, parts in MADE for index in range(len(parts))],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_part_of_a_proof_counts(make, parts, index):
    changed = [*parts]
    changed[index] = other(parts[index])

    assert make(*changed) != make(*parts)


def test_no_two_proofs_are_alike():
    assert len({make(*parts) for make, parts in MADE}) == len(MADE)


def test_neighbouring_nonces_do_not_run_into_one_another():
    head = HELLO[:5]

    assert proofs.hello_message(*head, b"ab", b"c") != proofs.hello_message(*head, b"a", b"bc")


def test_a_signature_is_of_one_message_by_one_key():
    device, message = Person("proofs").device, proofs.hello_message(*HELLO)
    signature = device.sign.sign(message)

    proofs.verify(device.sign_pk, signature, message)
    for key, given in [(Person("other").device.sign_pk, message), (device.sign_pk, proofs.welcome_message(*WELCOME))]:
        with pytest.raises(SignatureError):
            proofs.verify(key, signature, given)
    with pytest.raises(SignatureError):
        proofs.verify(b"no key", signature, message)


def test_names_are_lowered_and_nothing_else_becomes_allowed():
    assert account_name("Mia.B+x@Example-1_2") == "mia.b+x@example-1_2"
    assert account_name("a" * 128)
    for name in ("", "a" * 129, "a b", "mïa", "\u212aelvin", "a\n"):
        with pytest.raises(NameInvalidError):
            account_name(name)
