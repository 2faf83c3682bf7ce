"""The profile folder, its lock, its keys and its sealed records."""

import os
import stat
import subprocess
import sys

import pytest

from twinlock.client import keystore
from twinlock.client.backoff import Backoff
from twinlock.client.profile import Profile, default_profile
from twinlock.client.side_file import SideFile
from twinlock.client.status import Status, StatusBoard
from twinlock.client.transport import parse_address
from twinlock.client.vault_file import VaultFile
from twinlock.errors import (
    OfflineError,
    ProfileExistsError,
    ProfileInUseError,
    ProfileMissingError,
    StoreDamagedError,
    StoreError,
    StoreKeyError,
)
from twinlock.sealing.suite import StoreKey

STORE_KEY = StoreKey(bytes(range(32)))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "profile"
    Profile.create(path).close()
    VaultFile(path / "vault.db", STORE_KEY, os.urandom).close()
    return path


def test_a_profile_opens_once_in_one_process(folder):
    first = Profile.open(folder)

    with pytest.raises(ProfileInUseError):
        Profile.open(folder)

    first.close()
    Profile.open(folder).close()


def test_a_profile_opens_in_one_process_only(folder):
    held = Profile.open(folder)
    code = f"""
from pathlib import Path
from twinlock.client.profile import Profile
from twinlock.errors import ProfileInUseError
try:
    Profile.open(Path({str(folder)!r}))
except ProfileInUseError:
    print("in use")
"""

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    held.close()

    assert said.stdout == "in use\n"


def test_a_profile_is_made_once_and_missed_where_there_is_none(folder, tmp_path):
    with pytest.raises(ProfileExistsError):
        Profile.create(folder)
    with pytest.raises(ProfileMissingError):
        Profile.open(tmp_path / "elsewhere")


def test_a_folder_that_cannot_be_a_profile_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")

    for folder in (file, file / "below"):
        with pytest.raises(StoreError, match=str(file)):
            Profile.create(folder)


def test_only_the_owner_can_read_a_profile(folder):
    keystore.create_store_key(folder, None, os.urandom)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_default_profile_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TWINLOCK_PROFILE", str(tmp_path / "chosen"))
    assert default_profile() == tmp_path / "chosen"

    monkeypatch.delenv("TWINLOCK_PROFILE")
    assert default_profile().parts[-3:] == ("twinlock", "dev", "profile")


def test_a_store_key_without_holder_is_marked_weak(folder):
    made = keystore.create_store_key(folder, None, os.urandom)
    loaded = keystore.load_store_key(folder, None)

    assert loaded.key == made.key
    assert loaded.custody.is_weak


def test_a_passphrase_holds_the_store_key(folder):
    made = keystore.create_store_key(folder, "correct horse", os.urandom)

    assert made.key.expose() not in (folder / "store.key").read_bytes()
    assert keystore.load_store_key(folder, "correct horse").key == made.key
    for wrong in ("wrong horse", None):
        with pytest.raises(StoreKeyError):
            keystore.load_store_key(folder, wrong)


def test_the_keyring_holds_the_store_key_where_there_is_one(folder, monkeypatch):
    keyring = pytest.importorskip("keyring")
    monkeypatch.setattr(keyring.core, "_keyring_backend", MemoryKeyring(keyring))

    made = keystore.create_store_key(folder, None, os.urandom)

    assert made.custody is keystore.Custody.KEYRING
    assert keystore.load_store_key(folder, None).key == made.key
    keystore.forget_store_key(folder)
    with pytest.raises(StoreKeyError):
        keystore.load_store_key(folder, None)


def MemoryKeyring(keyring):
    class Memory(keyring.backend.KeyringBackend):
        priority = 5
        kept: dict = {}  # noqa: RUF012

        def get_password(self, service, username):
            return self.kept.get((service, username))

        def set_password(self, service, username, password):
            self.kept[service, username] = password

        def delete_password(self, service, username):
            del self.kept[service, username]

    return Memory()


def test_a_vault_record_opens_under_its_name_and_key_only(folder):
    vault = VaultFile(folder / "vault.db", STORE_KEY, os.urandom)
    vault.put({"secret": b"the plain words", "other": b"x"})
    vault._connection.execute("UPDATE records SET sealed = (SELECT sealed FROM records WHERE name = 'secret')")

    assert vault.get("secret") == b"the plain words"
    with pytest.raises(StoreDamagedError):
        vault.get("other")
    vault.close()
    stranger = VaultFile(folder / "vault.db", StoreKey(bytes(32)), os.urandom)
    with pytest.raises(StoreDamagedError):
        stranger.get("secret")
    stranger.close()
    assert b"the plain words" not in (folder / "vault.db").read_bytes()


def test_a_side_file_drops_only_what_was_never_acknowledged(tmp_path):
    side = SideFile(tmp_path)
    side.append(b"first")
    side.append(b"second")
    with (tmp_path / "locked.log").open("ab") as file:
        file.write(b"\0\0\0\x20torn")

    assert side.records() == [b"first", b"second"]
    side.append(b"third")
    assert side.records() == [b"first", b"second", b"third"]
    side.clear()
    assert side.records() == []


def test_the_delay_doubles_to_its_cap_and_starts_over_after_a_stable_minute():
    backoff = Backoff(lambda: 0.999999)

    delays = [backoff.next_delay_ms(0) for _ in range(9)]
    backoff.connected(1_000)
    after_short = backoff.next_delay_ms(60_999)
    backoff.connected(100_000)
    after_long = backoff.next_delay_ms(160_000)

    assert delays == [249, 499, 999, 1999, 3999, 7999, 15999, 29999, 29999]
    assert after_short == 29_999
    assert after_long == 249


def test_what_the_server_asks_for_is_the_least_delay():
    assert Backoff(lambda: 0.0).next_delay_ms(0, retry_after_ms=7_000) == 7_000


def test_the_status_shows_locked_over_the_connection_and_tells_each_change_once():
    board = StatusBoard()
    seen: list[Status] = []
    board.listen(seen.append)
    board.listen(lambda status: 1 / 0)

    for status in (Status.CONNECTING, Status.CONNECTED, Status.CONNECTED):
        board.set_connection(status)
    board.set_locked(True)
    board.set_connection(Status.RECONNECTING)
    board.set_locked(False)

    assert seen == ["connecting", "connected", "locked", "reconnecting"]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("ws://127.0.0.1:8765", "ws://127.0.0.1:8765"),
        ("https://sync.example.org/", "wss://sync.example.org:443"),
        ("localhost:8765", "ws://localhost:8765"),
        ("http://[::1]:9", "ws://[::1]:9"),
    ],
)
def test_an_address_gives_the_origin_that_is_dialled(url, origin):
    assert parse_address(url).origin == origin


@pytest.mark.parametrize("url", ["ftp://x", "ws://", "ws://host:port"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(OfflineError):
        parse_address(url)
