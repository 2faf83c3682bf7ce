"""The commands with which an operator backs a key service up, brings it back, and drills for it."""

import asyncio
import itertools
import shutil
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from twinlock.cli.commands import commands
from twinlock.keyservice import LocalKeyService
from twinlock.testing.contracts.key_requests import opened


async def fill(folder):
    """Make a key service with one open and one shredded space."""
    keys = LocalKeyService.open(folder)
    await opened(keys)
    shredded = await opened(keys)
    await keys.close()
    return shredded


async def shred(folder, space):
    keys = LocalKeyService.open(folder)
    await space.shred(keys)
    await keys.close()


def twinlock(*arguments, stdin=""):
    return CliRunner().invoke(commands, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A key service that was split and backed up before one of its two spaces was shredded, and its printed sheets."""
    place = tmp_path_factory.mktemp("template")
    folder = place / "keyservice"
    space = asyncio.run(fill(folder))
    printed = twinlock("keyservice", "split", "--sheets", 3, "--needed", 2, "--data", folder)
    assert printed.exit_code == 0, printed.stderr
    made = twinlock("keyservice", "backup", place / "backup", "--data", folder)
    assert made.exit_code == 0, made.stderr
    assert made.stdout.startswith("2 keys, ")
    asyncio.run(shred(folder, space))
    return place, printed.stdout


@pytest.fixture
def place(template, tmp_path):
    shutil.copytree(template[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def folder(place):
    return place / "keyservice"


@pytest.fixture
def backup(place):
    return place / "backup"


@pytest.fixture
def sheets(template):
    return template[1]


def some(sheets, *numbers):
    """Return the printed text of some sheets."""
    parts = sheets.split("twinlock backup sheet ")[1:]
    return "\n".join("twinlock backup sheet " + parts[number - 1] for number in numbers)


class TestSplit:
    def test_the_sheets_are_the_only_output_and_nothing_else_knows_their_words(self, folder, sheets):
        assert sheets.count("twinlock backup sheet") == 3
        assert "set " in sheets
        lines = [line.strip() for line in sheets.splitlines() if line.startswith("  ")]
        assert len(lines) == 9
        stored = b"".join(file.read_bytes() for file in folder.iterdir())
        pairs = {" ".join(pair) for line in lines for pair in itertools.pairwise(line.split())}
        assert not [pair for pair in pairs if pair.encode() in stored]

    def test_advice_goes_beside_the_sheets(self, tmp_path):
        asyncio.run(fill(tmp_path / "other"))
        printed = twinlock("keyservice", "split", "--data", tmp_path / "other")

        assert printed.stdout.count("any 3 are enough") == 5
        assert "keeps no copy" in printed.stderr
        assert "version 1 of the root key" in printed.stderr

    def test_it_is_refused_a_second_time_and_for_impossible_numbers(self, folder, sheets):
        again = twinlock("keyservice", "split", "--data", folder)
        impossible = twinlock("keyservice", "split", "--again", "--sheets", 2, "--needed", 3, "--data", folder)

        assert (again.exit_code, impossible.exit_code) == (1, 1)
        assert "--again" in again.stderr
        assert "sheets_refused" in impossible.stderr
        assert again.stdout + impossible.stdout == ""

    def test_without_a_key_service_there_is_nothing_to_split(self, tmp_path):
        refused = twinlock("keyservice", "split", "--data", tmp_path)

        assert refused.exit_code == 1
        assert "no key service" in refused.stderr


class TestBackup:
    def test_it_says_when_nothing_would_open_it(self, tmp_path):
        asyncio.run(fill(tmp_path / "other"))

        made = twinlock("keyservice", "backup", tmp_path / "copy", "--data", tmp_path / "other")

        assert made.exit_code == 0
        assert "never split" in made.stderr


class TestRestore:
    def test_sheets_bring_it_back_without_the_shredded_space(self, folder, backup, sheets, tmp_path):
        back = twinlock(
            "keyservice", "restore", "--from", backup, "--to", tmp_path / "new", "--deny-list", folder / "denied.txt",
            stdin=some(sheets, 3, 1),
        )  # fmt: skip

        assert back.exit_code == 0, back.stderr
        assert "1 denied spaces, 1 of their keys deleted" in back.stdout
        with closing(sqlite3.connect(tmp_path / "new" / "keyservice.db")) as database:
            assert database.execute("SELECT count(*) FROM keys").fetchone() == (1,)
        asyncio.run(LocalKeyService.open(tmp_path / "new").close())

    def test_the_deny_list_is_named_or_gone_without_expressly(self, folder, backup, sheets, tmp_path):
        common = (
            "keyservice",
            "restore",
            "--from",
            backup,
            "--to",
            tmp_path / "new",
            "--root-key",
            folder / "root.key",
        )
        silent = twinlock(*common)
        both = twinlock(*common, "--no-deny-list", "--deny-list", folder / "denied.txt")
        assert (silent.exit_code, both.exit_code) == (2, 2)
        assert "deny_list_missing" in silent.stderr

        without = twinlock(*common, "--no-deny-list")

        assert without.exit_code == 0
        assert "shredded since" in without.stderr

    def test_it_never_overwrites(self, folder, backup, sheets):
        refused = twinlock("keyservice", "restore", "--from", backup, "--to", folder, "--no-deny-list", stdin=sheets)

        assert refused.exit_code == 1
        assert "exists already" in refused.stderr


class TestDrill:
    def test_it_passes_and_tells_what_it_saw(self, folder, backup, sheets):
        passed = twinlock("drill", "--from", backup, "--deny-list", folder / "denied.txt", stdin=some(sheets, 2, 3))

        assert passed.exit_code == 0, passed.stderr
        assert "logs: 2 of accounts, 2 of spaces" in passed.stdout
        assert "keys that open: 1, " in passed.stdout
        assert "denied spaces: 1; 1 of their keys" in passed.stdout
        assert passed.stdout.endswith("passed\n")

    def test_it_fails_with_what_is_broken(self, folder, backup, sheets):
        with closing(sqlite3.connect(backup / "keyservice.db", isolation_level=None)) as database:
            database.execute("UPDATE keys SET wrapped = zeroblob(60)")

        failed = twinlock("drill", "--from", backup, "--root-key", folder / "root.key")

        assert failed.exit_code == 1
        assert failed.stderr.count("cannot be unwrapped") == 2
        assert "failed: 2 problems" in failed.stdout

    @pytest.mark.parametrize(("numbers", "told"), [((1,), "needs 2"), ((1, 1), "the same one"), ((), "no sheet")])
    def test_wrong_sheets_are_named(self, backup, sheets, numbers, told):
        refused = twinlock("drill", "--from", backup, stdin=some(sheets, *numbers))

        assert refused.exit_code == 1
        assert "sheets_refused" in refused.stderr
        assert told in refused.stderr

    def test_sheets_of_another_split_are_named(self, folder, backup, sheets):
        other = twinlock("keyservice", "split", "--again", "--data", folder)

        refused = twinlock("drill", "--from", backup, stdin=other.stdout)

        assert refused.exit_code == 1
        assert "not those of this backup" in refused.stderr


@pytest.mark.parametrize(
    "command", [("keyservice", "split"), ("keyservice", "rotate-root"), ("ledger", "show"), ("ledger", "verify")]
)
def test_a_folder_without_a_key_service_is_named_before_anything_is_printed(tmp_path, command):
    refused = twinlock(*command, "--data", tmp_path)

    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("no_key_service")
