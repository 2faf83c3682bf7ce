"""Key types show their bytes to nobody: not in text, not in logs, not in pickles, not in the trace of an exception."""

import ast
import copy
import io
import json
import logging
import os
import pickle
import re
import traceback

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.client.device_state import AccountKem
from twinlock.client.keystore import Custody, HeldKey, _KeyFile
from twinlock.errors import (
    CredentialsError,
    KeyMismatchError,
    OpenError,
    StoreDamagedError,
    StoreKeyError,
    TwinlockError,
)
from twinlock.ids import AccountId, Epoch, SpaceId
from twinlock.keyservice.service_key import ServiceKey as HeldServiceKey
from twinlock.keyservice.wrapper_file import _RootKeys
from twinlock.protocol.calls import CreateAccount, OpenUnlocker, Unlocker, UnlockerParamsResult
from twinlock.protocol.space_log import EpochRecord
from twinlock.replica.keyring import _Cached, _Exported
from twinlock.sealing import (
    AccountKeys,
    DataKey,
    DeviceKeys,
    EpochKeys,
    MemberKey,
    RecoveryKit,
    ServiceKey,
    StoreKey,
    UnlockKeys,
    open_epoch,
    open_link,
    open_record,
    open_store_key,
    open_sudo,
    open_wrapped,
    seal_record,
    seal_store_key,
    seal_sudo,
    unwrap_member_key,
    wrap_member_key,
)
from twinlock.server.secrets_file import ServerSecrets
from twinlock.testing.plaintext import Marker, find

RAW_BYTES = 8
"""So many bytes of a key in a row are more than chance can put into a text."""

SPACE = SpaceId(bytes(range(16)))
ACCOUNT = AccountId(bytes(16))
QUICK = 1_000
"""Rounds of stretching: these tests look at what is shown, not at how long it takes."""


KEY_NAME = re.compile("key|master|secret|ikm|raw")


def material(size: int = 32) -> bytes:
    """Bytes that no text holds by accident."""
    return os.urandom(size)


def keys_and_bytes() -> list[tuple[object, list[bytes]]]:
    """Every type that holds a secret, with the secrets in it."""
    a, b, pair, both = material(), material(), material(64), material(64)
    epoch = EpochKeys(SPACE, Epoch(1), MemberKey(a), ServiceKey(b))
    kit = material(16)
    halves = [pair[:32], pair[32:]]
    return [
        (MemberKey(a), [a]),
        (ServiceKey(b), [b]),
        (DataKey(a), [a]),
        (StoreKey(b), [b]),
        (epoch, [a, b, epoch.data_key.expose()]),
        (AccountKeys(pair), halves),
        (DeviceKeys(pair), halves),
        (RecoveryKit(kit), [kit]),
        (UnlockKeys(a, b), [a, b]),
        (HeldKey(StoreKey(a), Custody.FILE), [a]),
        (ServerSecrets(both), [both[:32], both[32:]]),
        (HeldServiceKey(b), [b]),
        (AccountKem(ACCOUNT, X25519PrivateKey.from_private_bytes(a)), [a]),
    ]


def records_and_bytes() -> list[tuple[object, list[bytes]]]:
    """Messages and records that carry a secret on its way to where it is sealed, proved or stored."""
    a, b = material(), material()
    return [
        (_Cached(Epoch(1), a, 0, 0), [a]),
        (_Exported({1: a}, [_Cached(Epoch(1), b, 0, 0)], 0), [a, b]),
        (_KeyFile(Custody.FILE, sealed=a), [a]),
        (Unlocker("password", "pbkdf2-sha256", bytes(16), 1, a), [a]),
        (OpenUnlocker("ada", "password", a), [a]),
        (CreateAccount("ada", [], [Unlocker("password", "pbkdf2-sha256", bytes(16), 1, a)]), [a]),
        (_RootKeys(1, {1: a}), [a]),
    ]


HOLDERS = [pytest.param(holder, secrets, id=type(holder).__name__) for holder, secrets in keys_and_bytes()]
RECORDS = [pytest.param(record, secrets, id=type(record).__name__) for record, secrets in records_and_bytes()]
# A kit is text on purpose; that nobody logs it is what the plaintext scan shows.
LOGGED = [holder for holder in HOLDERS + RECORDS if holder.id != "RecoveryKit"]


def shown(secrets: list[bytes], text: str | bytes) -> list[str]:
    """Return in which forms any 8 bytes in a row of a secret stand in a text."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    windows = [secret[at : at + RAW_BYTES] for secret in secrets for at in range(0, len(secret) - RAW_BYTES + 1)]
    found = [hit for window in windows for hit in find(Marker.of_bytes(window), data)]
    # Python's own way of writing bytes, and a list of numbers.
    for window in windows:
        written = repr(window)[2:-1].encode()
        numbers = ", ".join(map(str, window)).encode()
        found += [name for name, form in (("repr", written), ("numbers", numbers)) if form in data]
    return sorted(set(found))


def test_the_search_finds_a_secret_that_is_shown():
    secret = material()

    for text in (secret, secret.hex(), repr(secret), str(list(secret)), repr([{"key": secret}])):
        assert shown([secret], text), text


@pytest.mark.parametrize(("holder", "secrets"), HOLDERS + RECORDS)
def test_no_text_form_shows_a_key(holder, secrets):
    forms = [repr(holder), f"{holder!r}", f"{[holder]}", f"{holder!a}", "%r" % (holder,)]  # noqa: UP031
    if not isinstance(holder, RecoveryKit):  # Its letters are there to be shown to their owner, once.
        forms += [str(holder), f"{holder}", format(holder), "%s" % (holder,)]  # noqa: UP031

    assert shown(secrets, "\n".join(forms)) == []


@pytest.mark.parametrize(("holder", "secrets"), HOLDERS)
def test_no_key_can_be_written_by_a_general_encoder(holder, secrets):
    encoders = [pickle.dumps, copy.deepcopy, copy.copy, json.dumps, msgspec.msgpack.encode, msgspec.json.encode]
    for encode in encoders:
        try:
            written = encode(holder)
        except (TypeError, pickle.PicklingError, msgspec.MsgspecError):
            continue
        # What does not refuse must at least show nothing: a copy in memory is still the hidden type.
        assert shown(secrets, written if isinstance(written, bytes) else repr(written)) == [], encode


@pytest.mark.parametrize(("holder", "secrets"), HOLDERS)
def test_no_key_can_be_pickled(holder, secrets):
    with pytest.raises(TypeError):
        pickle.dumps(holder)


@pytest.mark.parametrize(("holder", "secrets"), LOGGED)
def test_no_log_record_shows_a_key(holder, secrets):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(EverythingFormatter())
    logger = logging.Logger("quiet")
    logger.addHandler(handler)

    try:
        raise RuntimeError("something broke", holder)
    except RuntimeError:
        logger.exception("it broke with %s", holder, extra={"holder": holder})

    assert "something broke" in stream.getvalue()
    assert shown(secrets, stream.getvalue()) == []


class EverythingFormatter(logging.Formatter):
    """Writes a record with everything that hangs on it."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) + repr(vars(record))


@pytest.mark.parametrize(("holder", "secrets"), HOLDERS + RECORDS)
def test_a_trace_with_local_variables_shows_no_key(holder, secrets):
    def inner(key):
        held = {"key": key}
        try:
            raise KeyError(key)
        except KeyError as exc:
            raise ValueError("outer") from exc or held

    try:
        inner(holder)
    except ValueError as exc:
        # This test's own frame holds the secrets in the clear; what is looked at begins below it.
        text = trace_with_locals(exc.with_traceback(exc.__traceback__.tb_next))

    assert "held = " in text
    assert shown(secrets, text) == []


def trace_with_locals(error: BaseException) -> str:
    """Return what a crash reporter would send: the whole chain, with the local variables of every frame."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def from_twinlock(text: str) -> str:
    """Keep the part of a trace that lies in the package: a test's own variables are its own affair."""
    frames = text.split('  File "')
    return "".join(frame for frame in frames if "twinlock/" in frame.split('"', 1)[0].replace(os.sep, "/"))


def raw_keys_in_frames(error: BaseException | None) -> list[str]:
    """Return the variables of the package's frames that are named like a key and hold bare bytes, down the chain."""
    found = []
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if "twinlock" in frame.f_globals["__name__"].partition(".")[0]:
                found += [
                    f"{frame.f_code.co_qualname}: {name}"
                    for name, value in frame.f_locals.items()
                    if isinstance(value, bytes) and KEY_NAME.search(name) and not name.endswith("_pk")
                ]
        error = error.__cause__
    return found


def failing_calls() -> list:
    """Calls that fail although, or because, a right key is at hand: what a crash reporter sees in the field."""
    a, b, other, raw = MemberKey(material()), ServiceKey(material()), MemberKey(material()), StoreKey(material())
    account, device = AccountKeys(material(64)), DeviceKeys(material(64))
    keys = EpochKeys(SPACE, Epoch(1), a, b)
    record = EpochRecord(keys.b_commit, keys.dk_commit, keys.drop_pk, b"", account.account)
    wrapped = wrap_member_key(keys, account.account, account.kem_pk)
    sealed = seal_record(raw, "name", b"content", os.urandom)
    sudo = seal_sudo(raw, "right words", account, os.urandom, QUICK)
    store = seal_store_key(raw, "right words", os.urandom, QUICK)
    unlocked = UnlockKeys(material(), material())
    kit = RecoveryKit(material(16))
    cases = [
        ("open_epoch", KeyMismatchError, lambda: open_epoch(SPACE, Epoch(1), other, b, record), [other, b]),
        (
            "unwrap_member_key",
            OpenError,
            lambda: unwrap_member_key(wrapped, device.kem, SPACE, Epoch(1), account.account),
            [a],
        ),
        ("open_link", OpenError, lambda: open_link(SPACE, Epoch(1), a, bytes(60)), [a]),
        ("open_record", StoreDamagedError, lambda: open_record(raw, "another", sealed), [raw]),
        ("open_sudo", CredentialsError, lambda: open_sudo(raw, "wrong words", account.account, sudo), [raw]),
        ("open_store_key", StoreKeyError, lambda: open_store_key("wrong words", store), [raw]),
        (
            "open_wrapped",
            CredentialsError,
            lambda: open_wrapped(unlocked, kit, account.account, bytes(92)),
            [unlocked.auth_key, unlocked.wrap_key, kit],
        ),
    ]
    return [pytest.param(error, call, secrets, id=name) for name, error, call, secrets in cases]


@pytest.mark.parametrize(("error", "call", "secrets"), failing_calls())
def test_a_failed_opening_shows_no_key_to_a_crash_reporter(error, call, secrets):
    exposed = [secret if isinstance(secret, bytes) else secret.expose() for secret in secrets]

    with pytest.raises(error) as caught:
        call()

    assert shown(exposed, str(caught.value)) == []
    assert shown(exposed, from_twinlock(trace_with_locals(caught.value))) == []
    assert raw_keys_in_frames(caught.value) == []


def test_an_error_of_weak_parameters_shows_no_password():
    from twinlock.sealing import unlock

    params = UnlockerParamsResult("pbkdf2-sha256", bytes(16), 1)

    with pytest.raises(TwinlockError) as caught:
        unlock(params, "a very secret password", "ada", bytes(32))

    assert "very secret" not in str(caught.value)


def test_nobody_in_the_package_prints_or_logs_what_it_exposes(package_trees):
    """`expose()` is the one way to the bytes: no call of a logger, of print or of an exception has one inside."""
    strays = [
        f"{name}:{node.lineno}"
        for name, tree in package_trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and is_telling(node) and any(is_expose(inner) for inner in ast.walk(node))
    ]

    assert strays == []


def is_telling(call: ast.Call) -> bool:
    """Tell whether a call writes for people: a logger, print, an exception, a formatted text."""
    name = ast.unparse(call.func)
    return name.startswith(("logger.", "logging.", "print", "typer.echo", "people.")) or name.endswith("Error")


def is_expose(node: ast.AST) -> bool:
    """Tell whether a node takes the bytes out of a key."""
    return isinstance(node, ast.Attribute) and node.attr == "expose"
