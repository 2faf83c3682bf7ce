"""`twinlock file` against a real server."""

import asyncio
import json
import sys

import pytest
from typer.testing import CliRunner

from tests.files_kit import SECRET, files_world
from twinlock.cli.commands import commands
from twinlock.cli.files import safe_name

world = files_world


async def twinlock_file(world, *arguments, given=b""):
    """Run a command on the profile "a", and return its status, what it printed, and what it said to people."""
    words = (arguments[0], "home", *arguments[1:], "--profile", str(world.folder / "a"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "twinlock", "file", *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=world.folder,
    )
    printed, said = await process.communicate(given)
    return process.returncode, printed, said.decode()


async def test_files_go_in_and_out_by_the_command_line(world):
    # A profile finds a server where it last did.
    await (await world.device("a")).close()
    (world.folder / "letter.txt").write_bytes(SECRET * 100)

    status, printed, said = await twinlock_file(world, "put", "letter.txt")
    id = printed.decode().strip()

    assert (status, len(id)) == (0, 32), said
    assert "the server has it" in said
    _, listed, _ = await twinlock_file(world, "list")
    shown = json.loads(listed)
    assert (shown["id"], shown["name"], shown["type"], shown["state"]) == (id, "letter.txt", "text/plain", "uploaded")
    assert (await twinlock_file(world, "get", id, "-"))[1] == SECRET * 100
    (world.folder / "letters").mkdir()
    assert (await twinlock_file(world, "get", id, "letters"))[0] == 0
    assert (world.folder / "letters" / "letter.txt").read_bytes() == SECRET * 100
    status, _, said = await twinlock_file(world, "get", id, ".")
    assert (status, said.split()[0]) == (1, "file_exists")
    assert (await twinlock_file(world, "delete", id))[0] == 0
    status, _, said = await twinlock_file(world, "get", id, "copy")
    assert (status, said.split()[0]) == (1, "not_found")


@pytest.mark.parametrize("command", ["get", "delete"])
def test_what_is_no_id_of_a_file_is_told_before_anything_is_opened(command):
    refused = CliRunner().invoke(commands, ["file", command, "home", "00"])

    assert refused.exit_code == 2
    assert "'00' is not the id of a file" in refused.stderr
    assert "twinlock file list home" in refused.stderr


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a letter.txt", "a letter.txt"),
        ("../../x", "_.._x"),
        ("--..;rm -rf $HOME\u202e", "_rm -rf _HOME_"),
        (".bashrc", "bashrc"),
        ("...", "file"),
    ],
)
def test_a_name_that_somebody_else_chose_becomes_a_harmless_one(name, kept):
    assert safe_name(name) == kept
