"""The formulas of spec/sealing.md, written down once more: primitives of `cryptography`, and no code of the SDK."""

import base64
import hashlib
import hmac
import unicodedata

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
HEADER_BYTES, SIGNATURE_BYTES = 112, 64
CHANGE, SNAPSHOT, DROP = 1, 2, 3
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def label(name: str, context: bytes = b"") -> bytes:
    return b"twinlock/1 " + name.encode() + b"\0" + context


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def kdf(ikm: bytes, salt: bytes, name: str, context: bytes = b"") -> bytes:
    """HKDF-SHA256 with 32 bytes of output is one HMAC to extract and one to expand."""
    return hmac.digest(hmac.digest(salt, ikm, "sha256"), label(name, context) + b"\1", "sha256")


def mac(key: bytes, name: str, context: bytes = b"") -> bytes:
    return hmac.digest(key, label(name, context), "sha256")


def open_aead(key: bytes, nonce: bytes, sealed: bytes, aad: bytes) -> bytes | None:
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except (InvalidTag, ValueError):
        return None


def open_box(key: bytes, box: bytes, aad: bytes) -> bytes | None:
    return open_aead(key, box[:12], box[12:], aad)


def open_hpke(private_key: bytes, sealed: bytes, info: bytes) -> bytes | None:
    try:
        return HPKE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private_key), info)
    except (InvalidTag, ValueError):
        return None


# Keys of a space, section 3


def b_commit(space: bytes, epoch: int, service_key: bytes) -> bytes:
    return sha256(label("b-commit") + space + u32(epoch) + service_key)


def data_key(space: bytes, epoch: int, member_key: bytes, service_key: bytes) -> bytes:
    return kdf(member_key, service_key, "data", space + u32(epoch))


def dk_commit(space: bytes, epoch: int, key: bytes) -> bytes:
    return kdf(key, space, "commit", u32(epoch))


def earlier_member_key(space: bytes, epoch: int, member_key: bytes, link: bytes) -> bytes | None:
    """What the link in the log of an epoch gives to the one who has its member key."""
    return open_box(kdf(member_key, space, "link", u32(epoch)), link, label("link", space + u32(epoch)))


def unwrapped_member_key(kem: bytes, space: bytes, epoch: int, name: bytes, wrapped: bytes) -> bytes | None:
    return open_hpke(kem, wrapped, label("wrap-a", space + u32(epoch) + name))


# Envelopes, section 5


def open_envelope(key: bytes, space: bytes, envelope: bytes) -> bytes | None:
    """The padded payload, by the data key of the envelope's epoch."""
    header, sealed = envelope[:HEADER_BYTES], envelope[HEADER_BYTES:-SIGNATURE_BYTES]
    if header[1] == DROP:
        return open_hpke(kdf(key, space, "drop"), sealed, label("drop", header))
    return open_aead(kdf(key, space, "device", header[24:40]), header[96:108], sealed, header)


def envelope_id(envelope: bytes) -> bytes:
    return sha256(envelope[:HEADER_BYTES] + sha256(envelope[HEADER_BYTES:-SIGNATURE_BYTES]))


def seal_envelope(
    key: bytes, chain: tuple[int, bytes, bytes], place: tuple[bytes, int, bytes], sign: bytes, padded: bytes
) -> bytes:
    """A change that is right in every byte; the chain is counter, predecessor and the log head that it names."""
    (counter, prev, log_head), (space, epoch, device) = chain, place
    nonce = sha256(padded + sign)[:12]
    front = bytes([1, CHANGE, 0, 0]) + u32(epoch) + space + device
    header = front + u64(counter) + u64(0) + log_head + prev + nonce + u32(len(padded) + 16)
    sealed = AESGCM(kdf(key, space, "device", device)).encrypt(nonce, padded, header)
    message = label("envelope", envelope_id(header + sealed + bytes(SIGNATURE_BYTES)))
    return header + sealed + Ed25519PrivateKey.from_private_bytes(sign).sign(message)


# Signed logs, section 4


def log_head(space: bytes, bodies: list[bytes]) -> bytes:
    head = bytes(32)
    for seq, body in enumerate(bodies, 1):
        log_id = bytes(16) if seq == 1 else space
        head = sha256(label("log") + log_id + u32(seq) + head + sha256(body))
    return head


def from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# Identities, section 2


def public_key(sign: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(sign).public_key().public_bytes_raw()


def device_id(sign: bytes, kem: bytes) -> bytes:
    sign_pk = public_key(sign)
    kem_pk = X25519PrivateKey.from_private_bytes(kem).public_key().public_bytes_raw()
    return sha256(label("device") + sign_pk + kem_pk)[:16]


def digits(name: str, context: bytes) -> str:
    number = str(int.from_bytes(sha256(label(name, context)), "big") % 10**60).rjust(60, "0")
    return " ".join(number[at : at + 5] for at in range(0, 60, 5))


def kit_bytes(letters: str) -> bytes:
    number = 0
    for letter in letters.replace("-", "").replace(" ", ""):
        number = number * 32 + ALPHABET.index(letter)
    return (number >> 12).to_bytes(16, "big")


def kit_wrap_key(letters: str, name: str, server_id: bytes, salt: bytes) -> bytes:
    """What a kit opens the account's keys with, section 2.2."""
    place = server_id + prefixed(unicodedata.normalize("NFKC", name).encode()) + prefixed(salt)
    salt = sha256(label("unlocker-salt", place))
    return kdf(kdf(kit_bytes(letters), salt, "recovery-kit"), salt, "wrap")


def invite_kem(space: bytes, secret: bytes) -> bytes:
    return kdf(secret, space, "inv-kem")
