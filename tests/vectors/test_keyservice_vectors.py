"""The vectors of the key service's own formats, read as another tool of an operator would read them."""

import json
from pathlib import Path

import msgspec
import pytest

from twinlock.errors import TwinlockError
from twinlock.ids import Epoch, SpaceId
from twinlock.keyservice.root_backup import RootBackup, SplitKey
from twinlock.keyservice.sheets import join_sheets
from twinlock.keyservice.wrapper import service_key_context
from twinlock.keyservice.wrapper_file import FileKeyWrapper
from twinlock.protocol.leased import Leased

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"
CASES = [
    pytest.param(construct, part, case, id=f"{construct}: {case['name']}")
    for construct in ("leased", "root_backup", "sheets", "wrapped_key")
    for part in ("accept", "reject")
    for case in json.loads((FOLDER / f"{construct}.json").read_text(encoding="utf-8"))[part]
]


def of(case, name: str) -> bytes:
    """Return a field that is written in hexadecimal."""
    return bytes.fromhex(case[name])


@pytest.mark.parametrize(("construct", "part", "case"), CASES)
def test_a_vector_is_read_as_the_spec_says(construct, part, case, tmp_path):
    check = globals()[f"check_{construct}"]
    if part == "accept":
        check(case, tmp_path)
        return
    with pytest.raises(TwinlockError) as refused:
        check(case, tmp_path)
    assert refused.value.code == case["error"]


def check_sheets(case, _folder):
    assert join_sheets(case["sheets"]) == of(case, "secret")


def check_leased(case, _folder):
    leased = Leased.unpack(of(case, "leased"))
    told = [[position.seq, position.head.hex()] for position in (leased.space, leased.account)]
    assert (leased.service_key, *told) == (of(case, "key"), case["space_log"], case["account_log"])
    assert leased.pack() == of(case, "leased")


def check_root_backup(case, _folder):
    split = SplitKey(of(case, "public"), of(case, "keyservice"), 1, 5, 3)
    backup = RootBackup(split, {case["version"]: of(case, "sealed")})
    assert backup.unseal(of(case, "private")) == {case["version"]: of(case, "key")}


def check_wrapped_key(case, folder):
    path = folder / "root.key"
    # The version that is asked for is the only one that there is, but in the case that has none.
    version = case["version"]
    path.write_bytes(msgspec.json.encode({"active": version, "keys": {version: of(case, "root_key")}}))
    path.chmod(0o600)
    context = service_key_context(SpaceId(of(case, "space")), Epoch(case["epoch"]), of(case, "keyservice"))
    assert context == of(case, "context") if "context" in case else True
    assert FileKeyWrapper.load(path).unwrap(of(case, "wrapped"), context) == of(case, "key")
