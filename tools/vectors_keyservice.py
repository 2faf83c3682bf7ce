"""The vectors of the key service's own formats: sheets, the sealed root key, wrapped keys."""

from __future__ import annotations

from unittest import mock

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.unit.sealing_world import SeededEntropy, flipped
from tools import hpke_reference
from tools.vectors_keys import Case, Vector, vector
from twinlock.ids import Epoch, SpaceId
from twinlock.keyservice.sheets import make_sheets
from twinlock.keyservice.wrapper import service_key_context
from twinlock.protocol.labels import label, u32
from twinlock.protocol.leased import Leased
from twinlock.protocol.signed_log import LogPosition


def sheets() -> Vector:
    """Sheets of words, and the private key that they bring back."""
    entropy = SeededEntropy("vectors sheets")
    secret = entropy(32)
    first, other = (_words(entropy, secret) for _ in range(2))
    accept: list[Case] = [
        {"name": f"sheets {', '.join(str(place + 1) for place in some)}", **_given([first[place] for place in some])}
        for some in ((0, 1, 2), (4, 2, 0), (0, 1, 2, 3, 4))
    ]
    for case in accept:
        case["secret"] = secret.hex()
    words = first[1].split()
    swapped = " ".join([*words[:9], words[10], words[9], *words[11:]])
    refused: dict[str, list[str]] = {
        "too few": first[:2],
        "one twice": [first[0], first[1], first[0]],
        "of two sets": [first[0], first[1], other[2]],
        "two words swapped": [first[0], swapped, first[2]],
        "a word that is none": [first[0], " ".join(["zzzz", *words[1:]]), first[2]],
        "cut short": [first[0], " ".join(words[:-1]), first[2]],
    }
    reject: list[Case] = [{"name": name, **_given(some), "error": "sheets_refused"} for name, some in refused.items()]
    return vector("sheets", "sealing.md, section 7", accept, reject)


def root_backups() -> Vector:
    """A version of the root key, sealed to the key on the sheets."""
    entropy = SeededEntropy("vectors root backup")
    private, identity = entropy(32), entropy(16)
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    accept: list[Case] = []
    for version in (1, 2):
        key = entropy(32)
        info = label("root-backup", identity + u32(version))
        sealed = hpke_reference.seal(X25519PrivateKey.from_private_bytes(entropy(32)), public, key, info)
        case = {"private": private.hex(), "public": public.hex(), "keyservice": identity.hex()}
        accept.append(
            {"name": f"version {version}", **case, "version": version, "sealed": sealed.hex(), "key": key.hex()}
        )
    case = {name: value for name, value in accept[0].items() if name != "key"}
    damaged = {"error": "store_failed"}
    reject: list[Case] = [
        {**case, "name": "in place of another version", "version": 2, **damaged},
        {**case, "name": "of another key service", "keyservice": bytes(16).hex(), **damaged},
        {**case, "name": "altered", "sealed": flipped(bytes.fromhex(str(case["sealed"])), 40).hex(), **damaged},
        {**case, "name": "with the sheets of another set", "private": entropy(32).hex(), "error": "sheets_refused"},
    ]
    return vector("root_backup", "sealing.md, section 7", accept, reject)


def wrapped_keys() -> Vector:
    """A service key, wrapped under a version of a root key in a file."""
    entropy = SeededEntropy("vectors wrapped key")
    root, space, identity = entropy(32), SpaceId(entropy(16)), entropy(16)
    accept: list[Case] = []
    for version, epoch in ((1, 1), (7, 2)):
        key, nonce = entropy(32), entropy(12)
        context = service_key_context(space, Epoch(epoch), identity)
        wrapped = u32(version) + nonce + AESGCM(root).encrypt(nonce, key, context)
        names = {"space": space.hex(), "epoch": epoch, "keyservice": identity.hex(), "context": context.hex()}
        case = {"root_key": root.hex(), "version": version, **names}
        accept.append({"name": f"epoch {epoch}", **case, "wrapped": wrapped.hex(), "key": key.hex()})
    case = {name: value for name, value in accept[0].items() if name not in ("key", "context")}
    refused = {"error": "store_failed"}
    reject: list[Case] = [
        {**case, "name": "of another epoch", "epoch": 2, **refused},
        {**case, "name": "of another space", "space": bytes(16).hex(), **refused},
        {**case, "name": "of another key service", "keyservice": bytes(16).hex(), **refused},
        {**case, "name": "under a version that does not exist", "version": 2, **refused},
        {**case, "name": "under another root key", "root_key": entropy(32).hex(), **refused},
        {**case, "name": "altered", "wrapped": flipped(bytes.fromhex(str(case["wrapped"])), 30).hex(), **refused},
    ]
    return vector("wrapped_key", "sealing.md, section 7", accept, reject)


def leased() -> Vector:
    """What is sealed in a lease."""
    entropy = SeededEntropy("vectors leased")
    key, space, account = entropy(32), LogPosition(3, entropy(32)), LogPosition(2, entropy(32))
    packed = Leased(key, space, account).pack()
    given = {
        "key": key.hex(),
        "space_log": [space.seq, space.head.hex()],
        "account_log": [account.seq, account.head.hex()],
    }
    accept: list[Case] = [{"name": "a key and two heads", "leased": packed.hex(), **given}]
    refused = {"a key alone": key, "cut short": packed[:-1], "with more behind it": packed + b"\0", "empty": b""}
    reject: list[Case] = [
        {"name": name, "leased": data.hex(), "error": "open_failed"} for name, data in refused.items()
    ]
    return vector("leased", "sealing.md, section 7", accept, reject)


def _given(some: list[str]) -> Case:
    return {"sheets": list(some)}


def _words(entropy: SeededEntropy, secret: bytes) -> list[str]:
    # The library draws from here alone.
    with mock.patch("shamir_mnemonic.shamir.RANDOM_BYTES", entropy):
        return [" ".join(sheet.words) for sheet in make_sheets(secret, 5, 3)]


MAKERS = {"sheets": sheets, "root_backup": root_backups, "wrapped_key": wrapped_keys, "leased": leased}
