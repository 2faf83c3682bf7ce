"""`twinlock space`: one account makes a space and shares it, another one joins, and it ends for both."""

import asyncio

import pytest
from typer.testing import CliRunner

from tests.client_kit import PASSWORD
from twinlock.cli.commands import commands


@pytest.fixture
def run(account_world):
    """Run a command on a profile, beside the server of this process; return what it printed for programs."""

    async def run_on(profile, *arguments, status=0, stdin=""):
        folder = account_world.folder / profile
        environment = {"TWINLOCK_PASSWORD": PASSWORD, "TERM": "dumb", "TWINLOCK_PROFILE": str(folder)}
        done = await asyncio.to_thread(
            CliRunner(env=environment).invoke, commands, ["space", *map(str, arguments)], input=stdin
        )
        assert done.exit_code == status, done.output
        return done.stdout

    async def start():
        # The profiles name the address of an earlier server.
        for profile in ("a", "ben"):
            await (await account_world.device(profile)).close()
        return run_on

    return start


async def test_a_space_is_made_shared_and_ended_from_the_shell(run):
    run = await run()
    space = (await run("a", "create", "family")).strip()
    link = (await run("a", "invite", "family", "--role", "reader", "--approve")).strip()
    assert "#tl1." in link

    await run("ben", "join", link, status=1)
    assert "ben" in await run("a", "invites", "family")
    await run("a", "approve", "family", "ben")
    # From the standard input the secret shows in no list of processes.
    assert (await run("ben", "join", stdin=f"{link}\n")).strip() == space
    assert "family" in await run("ben", "list")

    members = await run("ben", "members", "family")
    assert [word for word in ("ann", "owner", "ben", "reader", "this one") if word not in members] == []
    digits = (await run("ben", "verify", "family", "ann")).split()
    assert len(digits) == 12
    await run("a", "verify", "family", "ben", "".join(digits))
    await run("a", "verify", "family", "ben", "1" * 60, status=1)
    await run("a", "role", "family", "ben", "editor")
    await run("ben", "shred", "family", "--yes", status=1)
    await run("ben", "leave", "family")

    assert "left" in await run("ben", "list")
    await run("a", "shred", "family", status=1, stdin="n\n")
    await run("a", "shred", "family", stdin="y\n")
    assert "shredded" in await run("a", "list")


async def test_a_withdrawn_invite_admits_nobody_from_the_shell(run):
    run = await run()
    link = (await run("a", "invite", "home")).strip()
    await run("a", "uninvite", "home", link)

    await run("ben", "join", link, status=1)
    await run("a", "remove", "home", "nobody", status=1)
