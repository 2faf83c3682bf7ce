"""The numbers, frames and methods of spec/protocol.md are those of the code."""

import re
from pathlib import Path

import pytest

from twinlock.errors import error_from_code
from twinlock.protocol import frames, limits
from twinlock.protocol.frames import ClientFrame, ServerFrame
from twinlock.server.accounts import Accounts
from twinlock.server.blobs import Blobs
from twinlock.server.devices import DeviceBook
from twinlock.server.memberships import Memberships
from twinlock.server.pairing import Pairings
from twinlock.server.partitions import Partitions
from twinlock.server.rekem import Rekeming
from twinlock.server.session import TOLD_LIMITS
from twinlock.server.session_token import SessionTokens
from twinlock.server.sign_in import TokenSignIn
from twinlock.server.spaces import Spaces
from twinlock.server.unlockers import Unlockers

PAGE = (Path(__file__).parents[2] / "spec" / "protocol.md").read_text(encoding="utf-8")


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of the tables of a section."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    [found] = [part for part in text if part.startswith(section)]
    lines = [line for line in found.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_table_of_limits_is_that_of_the_code():
    written = {row[0]: int(row[1]) for row in rows_of("8. Limits")[1:]}

    assert written == {name: value for name, value in vars(limits).items() if name.isupper()}
    assert {name.lower(): value for name, value in written.items()} == TOLD_LIMITS


def test_the_table_of_frames_has_every_tag_and_every_field():
    written = {row[1]: (int(row[0]), row[3]) for row in rows_of("2. Frames")[1:]}

    for kind in (*ClientFrame.__args__, *ServerFrame.__args__):
        tag, fields = written.pop(kind.__name__.lower())
        outer = re.sub(r"\[[^]]*\]+", "[]", fields)
        assert tag == kind.__struct_config__.tag
        assert [re.match(r"\w+", field.strip()).group() for field in outer.split(", ")] == list(kind.__struct_fields__)
    assert written == {}
    assert frames.LOG_GROWN in PAGE


def test_the_table_of_methods_is_what_the_server_answers():
    written = {row[0] for row in rows_of("6. Calls")[1:]}
    people = (Accounts, DeviceBook, Pairings, Rekeming, SessionTokens, TokenSignIn, Unlockers)
    parts = (*people, Blobs, Memberships, Partitions, Spaces)
    answered = {name for part in parts for name in part.methods(object.__new__(part))}

    assert written == answered


@pytest.mark.parametrize("code", sorted(set(re.findall(r"\(`([a-z]+_[a-z_]+)`[),;]", PAGE)) - {"own_counter"}))
def test_every_code_on_the_page_is_in_the_registry(code):
    assert error_from_code(code).code == code
