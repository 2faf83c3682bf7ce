"""Pairing and revoking on the command line, as two people at two terminals would do it."""

import asyncio
import sys

import pytest

import twinlock
from tests.client_kit import NAME, PASSWORD
from tests.e2e.dev_server import environment_of

pytestmark = pytest.mark.e2e


@pytest.fixture
async def world(account_world):
    # The profile learns where this server listens.
    await (await account_world.device("a")).close()
    return account_world


async def start(world, *arguments, password=PASSWORD):
    """Begin a `twinlock` command in an empty home."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "twinlock",
        *arguments,
        env={**environment_of(world.folder), "TWINLOCK_PASSWORD": password},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(world, *arguments, password=PASSWORD):
    """Run a command to its end; return its status, what it printed, and what it said."""
    process = await start(world, *arguments, password=password)
    output, said = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, output.decode(), said.decode()


async def shown_code(process):
    """Read what a new device shows, up to its code."""
    seen = ""
    while "device approve " not in seen:
        line = await asyncio.wait_for(process.stderr.readline(), 30)
        assert line, seen
        seen += line.decode()
    return seen, seen.partition("device approve ")[2].split()[0]


def digits_in(text):
    return [word for word in text.split() if word.isdecimal() and len(word) == 5]


async def test_two_terminals_pair_a_device_and_one_revokes_it(world):
    a, new = str(world.folder / "a"), str(world.folder / "new")
    pairing = await start(world, "pair", world.url, "--profile", new, "--name", "terminal", password="its own one")
    seen, code = await shown_code(pairing)
    assert "█" in seen or "▄" in seen

    status, approved, said = await run(world, "device", "approve", code, "--profile", a)
    assert status == 0, said
    paired, told = await asyncio.wait_for(pairing.communicate(b"y\n"), 30)

    assert pairing.returncode == 0, told.decode()
    assert digits_in(paired.decode()) == digits_in(approved)
    assert len(digits_in(approved)) == 12
    assert NAME in told.decode()
    async with await twinlock.connect(profile=new) as db:
        await db.unlock("its own one")

    status, listed, _ = await run(world, "device", "list", "--profile", a)
    assert status == 0
    assert "terminal" in listed
    assert "this one" in listed
    status, kit, said = await run(world, "device", "revoke", "terminal", "--stolen", "--profile", a)
    assert status == 0, said
    assert len(kit.strip().replace("-", "")) == 28
    assert "revoked" in (await run(world, "device", "list", "--profile", a))[1]
    status, _, said = await run(world, "device", "list", "--profile", new)
    assert (status, said.split()[0]) == (1, "device_revoked")


async def test_digits_that_differ_are_rejected_and_leave_nothing(world):
    new = world.folder / "new"
    pairing = await start(world, "pair", world.url, "--profile", str(new))
    _, code = await shown_code(pairing)
    assert (await run(world, "device", "approve", code, "--profile", str(world.folder / "a")))[0] == 0

    _, told = await asyncio.wait_for(pairing.communicate(b"n\n"), 30)

    assert pairing.returncode == 1
    assert "rejected" in told.decode()
    assert not new.exists()
    added = told.decode().partition("device revoke ")[2].split()[0]
    assert (await run(world, "device", "revoke", added, "--profile", str(world.folder / "a")))[0] == 0


async def test_a_short_password_ends_a_pairing_before_it_begins(world):
    new = world.folder / "new"

    status, shown, said = await run(world, "pair", world.url, "--profile", str(new), password="short")

    assert (status, shown, said.split()[0]) == (1, "", "password_refused")
    assert not new.exists()


async def test_a_device_is_renamed_and_a_kit_is_made(world):
    a = str(world.folder / "a")
    assert (await run(world, "device", "rename", "[red]laptop\x1b[2J", "--profile", a))[0] == 0
    _, listed, _ = await run(world, "device", "list", "--profile", a)
    assert "[red]laptop[2J" in listed

    status, kit, said = await run(world, "kit", "new", "--qr", "--profile", a)

    assert status == 0
    assert "█" in said or "▄" in said
    async with await twinlock.recover(world.url, NAME, kit.strip(), profile=world.folder / "new") as db:
        assert db.is_connected


async def test_an_account_is_made_and_recovered_on_the_command_line(world):
    profiles = [str(world.folder / name) for name in ("first", "second", "third")]

    status, kit, said = await run(world, "sign-up", world.url, "bea", "--profile", profiles[0], password="a long one")
    assert status == 0, said
    status, _, said = await run(world, "recover", world.url, "bea", "--kit", kit.strip(), "--profile", profiles[1])
    assert status == 0, said
    wrong = await run(world, "recover", world.url, "bea", "--kit", "0000", "--profile", profiles[2])

    assert (await run(world, "space", "list", "--profile", profiles[1]))[1].count("home") == 1
    assert (wrong[0], wrong[2].split()[0]) == (1, "recovery_kit_malformed")


async def test_a_wrong_password_and_a_wrong_code_are_errors_with_a_remedy(world):
    a = str(world.folder / "a")

    wrong = await run(world, "device", "approve", "0000-0000-0000-0000", "--profile", a, password="wrong horse")
    unknown = await run(world, "device", "approve", "0000-0000-0000-0000", "--profile", a)

    assert (wrong[0], wrong[2].split()[0]) == (1, "wrong_credentials")
    assert (unknown[0], unknown[2].split()[0]) == (1, "pairing_unknown")
    assert "→" in unknown[2]


async def test_a_service_account_is_made_and_its_file_is_not_overwritten(world):
    path = world.folder / "worker.key"

    status, printed, said = await run(world, "service", "create", world.url, "worker", str(path))
    again = await run(world, "service", "create", world.url, "other", str(path))

    assert (status, printed.strip()) == (0, str(path)), said
    assert path.stat().st_mode & 0o777 == 0o600
    assert (again[0], again[2].split()[0]) == (1, "key_file_refused")
    async with await twinlock.connect(key_file=path, profile=world.folder / "worker") as db:
        assert db.name == "worker"
