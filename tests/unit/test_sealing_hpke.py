"""HPKE is RFC 9180 base mode with the layout `enc || ciphertext`, checked against an implementation of our own."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tools import hpke_reference
from twinlock.errors import OpenError
from twinlock.protocol import hpke

RECIPIENT = X25519PrivateKey.from_private_bytes(bytes(range(32)))
RECIPIENT_PK = RECIPIENT.public_key().public_bytes_raw()


def test_the_reference_agrees_with_the_vector_a_1_1_of_rfc_9180():
    # DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM; the RFC prints none with AES-256-GCM.
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    ephemeral = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736")
    )
    recipient_pk = bytes.fromhex("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d")
    share = ephemeral.public_key().public_bytes_raw()
    exchanged = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient_pk))

    secret = hpke_reference.shared_secret(exchanged, share, recipient_pk)
    key, nonce = hpke_reference.key_and_nonce(secret, info, hpke_reference.AES_128_GCM)

    assert share.hex() == "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
    assert secret.hex() == "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc"
    assert (key.hex(), nonce.hex()) == ("4531685d41d65f03dc48f6b8302c05b0", "56d890e5accaaf011cff4b7d")
    sealed = AESGCM(key).encrypt(nonce, b"Beauty is truth, truth beauty", b"Count-0")
    assert sealed.hex().startswith("f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc5")


def test_what_the_reference_seals_is_opened():
    ephemeral = X25519PrivateKey.from_private_bytes(bytes(reversed(range(32))))
    sealed = hpke_reference.seal(ephemeral, RECIPIENT_PK, b"a member key", b"info")

    assert hpke.open_sealed(RECIPIENT, sealed, b"info") == b"a member key"


def test_what_is_sealed_is_opened_by_the_reference():
    sealed = hpke.seal(RECIPIENT_PK, b"a member key", b"info")

    assert hpke_reference.open_sealed(RECIPIENT, sealed, b"info") == b"a member key"


def test_a_wrapped_key_has_80_bytes():
    assert len(hpke.seal(RECIPIENT_PK, bytes(32), b"")) == 80


@pytest.mark.parametrize("position", [0, 31, 32, 79])
def test_altered_bytes_are_refused(position):
    sealed = bytearray(hpke.seal(RECIPIENT_PK, bytes(32), b"info"))
    sealed[position] ^= 1

    with pytest.raises(OpenError):
        hpke.open_sealed(RECIPIENT, bytes(sealed), b"info")


def test_another_info_or_key_is_refused():
    sealed = hpke.seal(RECIPIENT_PK, b"x", b"info")

    with pytest.raises(OpenError):
        hpke.open_sealed(RECIPIENT, sealed, b"Info")
    with pytest.raises(OpenError):
        hpke.open_sealed(X25519PrivateKey.generate(), sealed, b"info")


@pytest.mark.parametrize("share", [bytes(32), b"\x01" + bytes(31)])
def test_an_all_zero_shared_secret_is_refused(share):
    with pytest.raises(OpenError):
        hpke.open_sealed(RECIPIENT, share + bytes(48), b"info")
    with pytest.raises(ValueError, match=r".*"):
        hpke.seal(share, b"x", b"info")


@pytest.mark.parametrize("length", [0, 31, 32, 47])
def test_what_is_too_short_is_refused(length):
    with pytest.raises(OpenError):
        hpke.open_sealed(RECIPIENT, bytes(length), b"")
