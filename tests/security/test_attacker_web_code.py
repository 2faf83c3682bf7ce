"""Whoever serves the web app's code besides server and key service has what people open there, and no native device.

There is no SDK for the web yet. What can be tried without one: everything that code in ann's browser would have seen is
given to the operator, and does not lead into the data of those who use native devices; and a native device takes no
code, no setting and no weaker procedure from a server.
"""

import ast

import msgspec
import pytest

import twinlock
from tests.client_kit import PASSWORD
from tests.security.attackers import Between, Hand, delivered, records, service_keys, signed_log
from tests.security.raid import stored, windows
from twinlock.errors import OpenError, WeakParametersError, WrongServerError
from twinlock.ids import Epoch
from twinlock.protocol.calls import UnlockerParamsResult
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import EpochKeys, MemberKey, ServiceKey, open_payload, unwrap_member_key

RUNNING = {"eval", "exec", "compile", "__import__"}
RUNNING_MODULES = {"pickle", "marshal", "shelve", "importlib", "runpy", "code", "ctypes", "subprocess", "dill"}
"""What would run, or load as a program, something that came as data."""

NATIVE = ("client", "replica", "sealing", "document", "protocol")
"""The packages of a native device."""


async def test_whoever_serves_the_web_app_reads_what_is_opened_there_and_nothing_of_native_devices(household):
    """Ann opened the app in a browser, whose code sent everything away; ben uses his telephone alone."""
    ann, ben = await household.device("a"), await household.device("ben")
    for db, text in ((ann, "ann's own words"), (ben, "ben's own words")):
        await (await db.space("home").collection("notes").doc("diary").set({"text": text})).durable()
    browser, phone = Hand(ann, "home"), Hand(ben, "home")

    # What they get: all that was open in the browser, also as the server stores it.
    keys = browser.keys[Epoch(1)]
    seen = b"".join(open_payload(each, keys) for each in delivered(household, browser.space))
    assert b"ann's own words" in seen

    # What they do not get: ben's own space. They have B of it, all bytes of the server, and all of ann's keys.
    loot = windows(stored(household.folder / "server") | set(browser.secrets().values()))
    b = ServiceKey(service_keys(household, phone.space)[Epoch(1)])
    commit = replay_space(signed_log(household, phone.space)).epochs[Epoch(1)].dk_commit
    assert b.expose() == phone.keys[Epoch(1)].service_key.expose()
    assert phone.keys[Epoch(1)].member_key.expose() not in loot
    for key in browser.secrets().values():
        assert EpochKeys(phone.space, Epoch(1), MemberKey(key), b).dk_commit != commit
    for envelope in delivered(household, phone.space):
        with pytest.raises(OpenError):
            open_payload(envelope, EpochKeys(phone.space, Epoch(1), keys.member_key, b))
    rows = records(household, f"keyring/{phone.space.hex()}/")
    assert rows
    for row in rows.values():
        with pytest.raises(OpenError):
            unwrap_member_key(row[-80:], browser.kem, phone.space, Epoch(1), phone.account)


def test_a_native_device_runs_nothing_that_came_as_data(package_trees):
    """No part of it can run a program that a server sends: such calls and modules do not occur in its packages."""
    looked_at = 0
    found = []
    for name, tree in package_trees:
        if name.split("/")[2] not in NATIVE:
            continue
        looked_at += 1
        found += [f"{name}: {what}" for what in runs(tree)]

    assert looked_at > 100
    assert found == []


def runs(tree):
    """Return what in a source could run something that came as data."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUNNING:
            found.append(node.func.id)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in RUNNING_MODULES]
    return found


def test_a_call_that_runs_data_would_be_found():
    """The control of the test above."""
    planted = "import pickle\nfrom importlib import import_module\neval(frame.detail)\n"

    assert runs(ast.parse(planted)) == ["pickle", "importlib", "eval"]


async def test_a_native_device_takes_no_weaker_procedure_from_a_server(household, tmp_path):
    """The operator asks it to stretch the password less, or shows another server's key."""
    between = Between()
    between.replies["unlocker.params"] = lambda result: msgspec.msgpack.encode(
        msgspec.structs.replace(msgspec.msgpack.decode(result, type=UnlockerParamsResult), iterations=1)
    )
    with pytest.raises(WeakParametersError):
        await twinlock.sign_in(
            household.url,
            "ann",
            PASSWORD,
            profile=tmp_path / "evil",
            options=twinlock.Options(dial=between.dial),
        )
    assert between.calls("unlocker.open") == [], "nothing that was derived so was sent"

    between.replies.clear()
    between.frames = lambda frame: (
        msgspec.structs.replace(frame, server_pk=bytes(32)) if hasattr(frame, "server_pk") else frame
    )
    with pytest.raises(WrongServerError):
        await household.device("ben", dial=between.dial)
