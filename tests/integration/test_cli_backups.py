"""The commands with which an operator backs a server up, brings it back, drills for it and moves it."""

import shutil
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from twinlock.cli.commands import commands
from twinlock.testing.seaweed_process import SeaweedProcess


def twinlock(*arguments):
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def serve(data):
    """Serve a folder in a process of its own: a server sets up the logs of all that runs beside it."""
    command = [sys.executable, "-m", "twinlock", "serve", "--data", data, "--port", "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def template(account_template, tmp_path_factory):
    """A server's data folder that nobody serves, and a backup of it."""
    place = tmp_path_factory.mktemp("backups")
    shutil.copytree(account_template / "server", place / "server")
    made = twinlock("backup", place / "backup", "--data", place / "server", "--with-identity")
    assert made.exit_code == 0, made.output
    assert made.stdout.startswith("generation 1: ")
    return place


@pytest.fixture
def place(template, tmp_path):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_backup_is_readable_by_its_owner_alone(place):
    files = [path for path in (place / "backup").rglob("*") if path.is_file()]

    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_second_backup_writes_nothing_that_is_there(place):
    made = twinlock("backup", place / "backup", "--data", place / "server", "--keep", 1)

    assert made.exit_code == 0, made.output
    assert "generation 2: 0 B written" in made.stdout
    assert "1 old generations deleted" in made.stdout
    assert "server.key and the key service are not in it" in made.stderr


def test_the_servers_key_is_in_a_backup_only_if_that_is_said(place):
    secret = (place / "server" / "server.key").read_bytes()
    assert any(secret in path.read_bytes() for path in (place / "backup").rglob("*") if path.is_file())

    twinlock("backup", place / "without", "--data", place / "server")

    assert not any(secret in path.read_bytes() for path in (place / "without").rglob("*") if path.is_file())


def test_a_drill_passes_and_a_damaged_backup_fails_it(place):
    passed = twinlock("drill", place / "backup")
    assert passed.exit_code == 0, passed.output
    assert passed.stdout.splitlines()[-1] == "passed"
    assert "logs: 3 of accounts" in passed.stdout
    assert "listening" not in passed.output, "its own server's log is no result"

    largest = max((place / "backup" / "chunks").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    failed = twinlock("drill", "--from", place / "backup")

    assert failed.exit_code == 1
    assert failed.stdout.splitlines()[-1].startswith("failed: ")
    assert "was altered" in failed.stderr


def test_a_restore_makes_a_folder_that_is_the_server_again(place):
    new = place / "new"

    restored = twinlock("restore", place / "backup", "--to", f"sqlite:{new}")

    assert restored.exit_code == 0, restored.output
    assert (new / "server.key").read_bytes() == (place / "server" / "server.key").read_bytes()
    assert stat.S_IMODE((new / "server.key").stat().st_mode) == 0o600
    again = twinlock("restore", place / "backup", "--to", f"sqlite:{new}")
    assert again.exit_code == 1
    assert "already" in again.stderr


def test_a_damaged_backup_is_restored_only_if_that_is_said(place):
    for path in (place / "backup" / "chunks").rglob("*"):
        if path.is_file() and path.stat().st_size > 2_000:
            path.unlink()
            break

    refused = twinlock("restore", place / "backup", "--to", f"sqlite:{place / 'one'}")
    assert refused.exit_code == 1
    assert "backup_damaged" in refused.stderr
    accepted = twinlock("restore", place / "backup", "--to", f"sqlite:{place / 'two'}", "--even-damaged")

    assert accepted.exit_code == 1
    assert "is missing" in accepted.stderr


def test_a_database_that_another_tool_set_back_gets_a_new_incarnation(place):
    first = twinlock("restored", place / "server")
    second = twinlock("restored", place / "server")

    assert first.exit_code == second.exit_code == 0
    assert first.stdout.startswith("incarnation ")
    assert first.stdout != second.stdout
    assert twinlock("restored", place / "backup").exit_code == 1


def test_a_move_leaves_a_folder_that_is_not_served_again(place):
    moved = twinlock("migrate", "--from", f"sqlite:{place / 'server'}", "--to", f"sqlite:{place / 'new'}")

    assert moved.exit_code == 0, moved.output
    assert "nobody was served for" in moved.stdout
    again = twinlock("migrate", "--from", f"sqlite:{place / 'new'}", "--to", f"sqlite:{place / 'server'}")
    assert again.exit_code == 1
    served = serve(place / "server")
    assert served.returncode == 1
    assert "this database was moved to" in served.stderr


def test_what_names_no_engine_or_no_backup_is_told(place):
    for arguments in (
        ("restore", place / "backup", "--to", "postgres://somewhere"),
        ("migrate", "--from", "nothing", "--to", "sqlite:new"),
        ("drill",),
    ):
        assert twinlock(*arguments).exit_code == 2
    for arguments in (
        ("drill", place / "nowhere"),
        ("drill", place / "server"),
        ("backup", place / "elsewhere", "--data", place / "nowhere"),
        ("restore", place / "backup", "--to", f"sqlite:{place / 'x'}", "--generation", 7),
    ):
        assert twinlock(*arguments).exit_code == 1


def test_a_folder_that_is_not_there_is_named(place):
    nowhere = place / "some" / "where"

    assert str(nowhere) in twinlock("drill", nowhere).stderr
    assert str(nowhere) in twinlock("backup", place / "elsewhere", "--data", nowhere).stderr


def test_a_restore_that_was_cut_short_says_to_empty_what_it_left(place):
    chunks = sorted((place / "backup" / "chunks").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    chunks[-1].unlink()
    assert twinlock("restore", place / "backup", "--to", f"sqlite:{place / 'new'}").exit_code == 1

    served = serve(place / "new")

    assert served.returncode == 1
    assert "for a restore empty this first" in served.stderr


@pytest.mark.slow
def test_a_bucket_takes_backups_and_gives_them_back(place, monkeypatch):
    process = SeaweedProcess(place / "seaweed")
    for name, value in process.credentials.items():
        monkeypatch.setenv(name, value)
    (place / "seaweed").mkdir()
    process.start()
    try:
        where = ("s3://bucket/backups", "--endpoint", process.endpoint)
        first = twinlock("backup", *where, "--data", place / "server")
        again = twinlock("backup", *where, "--data", place / "server", "--keep", 1)
        drilled = twinlock("drill", *where)
        restored = twinlock("restore", *where, "--to", f"sqlite:{place / 'new'}")
    finally:
        process.kill()

    assert first.exit_code == again.exit_code == drilled.exit_code == restored.exit_code == 0, drilled.output
    assert "generation 2: 0 B written" in again.stdout
    assert drilled.stdout.splitlines()[-1] == "passed"
    assert not list((place / "new").rglob("server.key"))
    assert "Put server.key into" in restored.stderr
