"""Wiping a revoked device's folder, whoever holds its StoreKey, and however often it takes."""

import os

import pytest

from twinlock.client import keystore
from twinlock.client.keystore import Custody
from twinlock.client.profile import Profile
from twinlock.client.revoked import refuse_if_revoked, wipe
from twinlock.client.vault_file import VaultFile
from twinlock.errors import DeviceRevokedError, ProfileMissingError
from twinlock.ids import DeviceId, SpaceId

DEVICE = DeviceId(bytes(range(16)))
LEFT = ["lock", "revoked.json"]


class Ring:
    """What the `keyring` package offers, with a holder in memory that may be locked."""

    def __init__(self):
        self.kept = {}
        self.is_locked = False

    def get_password(self, service, name):
        return self._open().get((service, name))

    def set_password(self, service, name, password):
        self._open()[service, name] = password

    def delete_password(self, service, name):
        del self._open()[service, name]

    def _open(self):
        if self.is_locked:
            raise RuntimeError("the keyring is locked")
        return self.kept


@pytest.fixture
def ring(monkeypatch):
    held = Ring()
    monkeypatch.setattr(keystore, "_keyring", lambda: held)
    return held


def filled(folder, passphrase=None):
    """A profile with a StoreKey, a vault and a space's folder."""
    profile = Profile.create(folder)
    held = keystore.create_store_key(folder, passphrase, os.urandom)
    vault = VaultFile(profile.vault_path, held.key, os.urandom)
    vault.put({"keyring/00": b"member keys"})
    vault.close()
    (profile.space_folder(SpaceId(bytes(16))) / "replica.db").write_bytes(b"sealed")
    return profile, held


def left(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("passphrase", [None, "open sesame"])
def test_a_wiped_folder_holds_the_mark_alone(tmp_path, monkeypatch, passphrase):
    monkeypatch.setattr(keystore, "_keyring", lambda: None)
    profile, held = filled(tmp_path / "p", passphrase)
    raw = held.key.expose()

    wipe(profile, DEVICE, 1_000)

    assert left(tmp_path / "p") == LEFT
    assert raw not in b"".join((tmp_path / "p" / name).read_bytes() for name in LEFT)
    profile.close()
    with pytest.raises(DeviceRevokedError):
        refuse_if_revoked(Profile.open(tmp_path / "p"))


def test_the_keyring_forgets_the_store_key(tmp_path, ring):
    profile, held = filled(tmp_path / "p")
    assert held.custody is Custody.KEYRING

    wipe(profile, DEVICE, 1_000)

    assert ring.kept == {}
    assert left(tmp_path / "p") == LEFT


def test_a_locked_keyring_is_asked_again_at_the_next_opening(tmp_path, ring):
    profile, _ = filled(tmp_path / "p")
    ring.is_locked = True
    wipe(profile, DEVICE, 1_000)
    # What the key opens is gone already; where the key is remains known.
    assert left(tmp_path / "p") == [*LEFT, "store.key"]
    profile.close()
    ring.is_locked = False

    opened = Profile.open(tmp_path / "p")
    with pytest.raises(DeviceRevokedError):
        refuse_if_revoked(opened)

    assert ring.kept == {}
    assert left(tmp_path / "p") == LEFT
    opened.close()


def test_the_first_mark_stays_and_a_new_profile_may_take_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr(keystore, "_keyring", lambda: None)
    profile, _ = filled(tmp_path / "p")
    wipe(profile, DEVICE, 1_000)
    mark = (tmp_path / "p" / "revoked.json").read_bytes()
    wipe(profile, DEVICE, 2_000)
    assert (tmp_path / "p" / "revoked.json").read_bytes() == mark
    profile.close()

    Profile.create(tmp_path / "p").close()

    assert left(tmp_path / "p") == ["lock"]
    with pytest.raises(ProfileMissingError):
        Profile.open(tmp_path / "p")
