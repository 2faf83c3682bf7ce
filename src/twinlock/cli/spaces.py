"""`twinlock space`: the spaces of an account, who is in them, and what they may do."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from twinlock.cli.devices import Password, show_digits, unlocked
from twinlock.cli.documents import ProfileFolder, opened
from twinlock.cli.output import people, run, wide_console

if TYPE_CHECKING:
    from twinlock.client.client import Client
    from twinlock.client.space import Space

SpaceName = Annotated[str, typer.Argument(help="A space's name or id.", metavar="SPACE", show_default=False)]
MemberName = Annotated[str, typer.Argument(help="A member's name or id.", metavar="MEMBER", show_default=False)]
RoleName = Annotated[
    Literal["owner", "admin", "editor", "reader", "sender"],
    typer.Argument(help="owner, admin, editor, reader or sender.", metavar="ROLE"),
]
Link = Annotated[
    str | None,
    typer.Argument(
        help="An invite link. Left out, it is asked for: its secret then shows to no other user of this machine.",
        metavar="[LINK]",
        show_default=False,
    ),
]

space = typer.Typer(name="space", help="Make and share spaces, and change who is in them.", no_args_is_help=True)


@space.command("list")
def list_spaces(profile: ProfileFolder = None) -> None:
    """Show the account's spaces, and those that have ended on this device."""
    run(_list(profile))


@space.command()
def create(
    title: Annotated[str, typer.Argument(help="Its name.", metavar="NAME", show_default=False)],
    password: Password,
    lease_hours: Annotated[
        int | None, typer.Option("--lease-hours", help="How long devices read without the server; 0 stores no lease.")
    ] = None,
    profile: ProfileFolder = None,
) -> None:
    """Make a space; its id goes to the standard output."""
    run(_create(title, password, lease_hours, profile))


@space.command()
def invite(
    name: SpaceName,
    password: Password,
    role: Annotated[
        Literal["editor", "reader", "sender"],
        typer.Option("--role", "-r", help="What who joins may do; owners and admins are made of members."),
    ] = "editor",
    hours: Annotated[float, typer.Option("--hours", help="How long the link holds.", min=0.01, max=8784)] = 72,
    uses: Annotated[int, typer.Option("--uses", help="How many may join by it.", min=1, max=10_000)] = 1,
    approve: Annotated[bool, typer.Option("--approve", help="Each is confirmed with `approve` first.")] = False,
    profile: ProfileFolder = None,
) -> None:
    """Print a link that lets whoever opens it join. It is shown once: give it to nobody else."""

    async def make(found: Space) -> None:
        print(await found.invite(role, hours=hours, uses=uses, approve=approve))

    _change(name, password, profile, make, "")


@space.command()
def invites(name: SpaceName, profile: ProfileFolder = None) -> None:
    """Show the invites that are open, and who waits for approval."""
    run(_invites(name, profile))


@space.command()
def uninvite(
    name: SpaceName,
    link_or_id: Annotated[str, typer.Argument(help="The link or the id of an invite.", show_default=False)],
    password: Password,
    profile: ProfileFolder = None,
) -> None:
    """Withdraw an invite."""
    _change(name, password, profile, lambda found: found.uninvite(link_or_id), "withdrawn")


@space.command()
def join(password: Password, link: Link = None, profile: ProfileFolder = None) -> None:
    """Join the space of an invite link; its id goes to the standard output."""
    run(_join(link or _asked_link(), password, profile))


@space.command()
def approve(name: SpaceName, member: MemberName, password: Password, profile: ProfileFolder = None) -> None:
    """Let in somebody who joined by an invite that needs approval."""
    _change(name, password, profile, lambda found: found.approve(member), "approved")


@space.command()
def members(name: SpaceName, profile: ProfileFolder = None) -> None:
    """Show who is in a space, and what they may do."""
    run(_members(name, profile))


@space.command()
def verify(
    name: SpaceName,
    member: MemberName,
    code: Annotated[str | None, typer.Argument(help="The 60 digits that the member sees.", metavar="[CODE]")] = None,
    profile: ProfileFolder = None,
) -> None:
    """Show the digits that both sides must see, or compare those that the member reads out."""
    run(_verify(name, member, code, profile))


@space.command()
def role(
    name: SpaceName, member: MemberName, role: RoleName, password: Password, profile: ProfileFolder = None
) -> None:
    """Give a member another role."""
    _change(name, password, profile, lambda found: found.set_role(member, role), "changed")


@space.command()
def remove(name: SpaceName, member: MemberName, password: Password, profile: ProfileFolder = None) -> None:
    """Remove a member, and open an epoch that it has no key of."""
    _change(name, password, profile, lambda found: found.remove(member), "removed")


@space.command()
def leave(name: SpaceName, password: Password, profile: ProfileFolder = None) -> None:
    """Leave a space; its data on this account's devices is deleted."""
    _change(name, password, profile, lambda found: found.leave(), "left")


@space.command()
def rename(
    name: SpaceName,
    title: Annotated[str, typer.Argument(help="The new name.", metavar="NAME", show_default=False)],
    password: Password,
    profile: ProfileFolder = None,
) -> None:
    """Give a space another name."""
    _change(name, password, profile, lambda found: found.rename(title), "renamed")


@space.command()
def rotate(name: SpaceName, password: Password, profile: ProfileFolder = None) -> None:
    """Open a new epoch: what is written from then on takes new keys."""
    _change(name, password, profile, lambda found: found.rotate(), "rotated")


@space.command()
def shred(
    name: SpaceName,
    password: Password,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    profile: ProfileFolder = None,
) -> None:
    """Destroy a space's keys, for good: no replica, backup or device opens it any more."""
    text = f"Destroy the keys of {name!r}, so that nobody ever reads it again?"
    if not is_sure and not typer.confirm(text, err=True):
        raise typer.Exit(1)
    _change(name, password, profile, lambda found: found.shred(), "shredded")


def _change(
    name: str, password: str, profile: Path | None, change: Callable[[Space], Awaitable[None]], done: str
) -> None:
    async def work() -> None:
        async with unlocked(profile, password) as db:
            await change(db.space(name))
        if done:
            people.print(f"[green]{done}[/]")

    run(work())


async def _list(profile: Path | None) -> None:
    table = _table("space", "name", "role", "")
    async with opened(profile, offline=False) as db:
        for info in db.spaces():
            state = "[yellow]locked[/]" if info.locked else ""
            table.add_row(info.id, escape(info.title or ""), str(info.role or ""), state)
        for end in db.ended_spaces():
            table.add_row(end.space, "", "", f"[red]{end.reason}[/]")
    wide_console().print(table)


async def _create(title: str, password: str, lease_hours: int | None, profile: Path | None) -> None:
    async with unlocked(profile, password) as db:
        print((await db.create_space(title, lease_hours)).id)


def _asked_link() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Invite link", hide_input=True, err=True))
    return sys.stdin.readline().strip()


async def _join(link: str, password: str, profile: Path | None) -> None:
    async with unlocked(profile, password) as db:
        joined = await db.join(link)
        people.print(f"[green]joined[/] {escape(joined.title or '')}")
        print(joined.id)


async def _members(name: str, profile: Path | None) -> None:
    table = _table("member", "name", "role", "devices", "")
    async with opened(profile, offline=False) as db:
        for info in await db.space(name).members():
            state = "[green]this one[/]" if info.this else "[green]verified[/]" if info.verified else ""
            table.add_row(info.id, escape(info.name or ""), str(info.role), str(info.devices), state)
    wide_console().print(table)


async def _invites(name: str, profile: Path | None) -> None:
    table = _table("invite or account", "name", "role", "uses", "until")
    async with opened(profile, offline=False) as db:
        found = db.space(name)
        for applicant in await found.applicants():
            table.add_row(applicant.id, escape(applicant.name or ""), str(applicant.role), "", "[yellow]waits[/]")
        for info in found.invites():
            until = datetime.datetime.fromtimestamp(info.expires_ms / 1000, tz=datetime.UTC).astimezone()
            table.add_row(info.id, "", str(info.role), str(info.uses_left), f"{until:%Y-%m-%d %H:%M}")
    wide_console().print(table)


async def _verify(name: str, member: str, code: str | None, profile: Path | None) -> None:
    async with opened(profile, offline=False) as db:
        await _verify_in(db, name, member, code)


async def _verify_in(db: Client, name: str, member: str, code: str | None) -> None:
    if code is not None:
        await db.space(name).verify(member, code)
        people.print("[green]verified[/]: nobody stands between you")
        return
    people.print(f"Compare by voice or in person; {escape(member)} must see the same:\n")
    show_digits(await db.space(name).safety_code(member))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
