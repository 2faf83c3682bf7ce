"""`twinlock inspect`: what lies in a profile or in a server's data folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twinlock.cli.output import fail, run, wide_console
from twinlock.cli.server_folder import database_in, space_facts

if TYPE_CHECKING:
    from twinlock.client.client import Client


def inspect(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A profile or a server's data folder. [dim]default: the default profile[/]"),
    ] = None,
) -> None:
    """Show what lies in a profile (spaces, counts, what waits, what was refused, quarantine) or on a server.

    Of a server only metadata can be shown: it has nothing else.
    """
    from twinlock.client.profile import VAULT_FILE_NAME, default_profile

    place = folder or default_profile()
    if (place / VAULT_FILE_NAME).exists():
        run(_profile(place))
        return
    database = database_in(place) if place.is_dir() else None
    if database is None:
        fail("nothing_here", f"{place} is neither a profile nor a server's data folder.", "Name the folder.")
    _server(database)


def _server(database: Path) -> None:
    facts = space_facts(database)
    table = Table(box=SIMPLE, header_style="bold", title=f"{database}", title_justify="left")
    table.add_column("space", no_wrap=True)
    for name in ("entries", "bytes", "from seq", "to seq", "devices"):
        table.add_column(name, justify="right")
    for space in facts:
        table.add_row(
            space.space,
            *(f"{number:,}" for number in (space.entries, space.size, space.start, space.head, space.devices)),
        )
    console = wide_console()
    console.print(table)
    count = "1 space" if len(facts) == 1 else f"{len(facts)} spaces"
    console.print(f"  {count}. [dim]Names, documents and fields are sealed: this is all there is.[/]")


async def _profile(place: Path) -> None:
    import twinlock

    async with await twinlock.connect(profile=place) as db:
        console = wide_console()
        key = "in a plain file, readable by whoever reads this disk" if db.weak_storage else "in a safe place"
        console.print(f"[bold]{escape(str(place))}[/]")
        waiting = f"writes that are not on the server: {db.pending_count}"
        console.print(f"  account [bold]{escape(db.name)}[/], {db.status}, {waiting}")
        console.print(f"  the key of this device's files is {key}")
        _show_spaces(console, db)
        _show_refused(console, db)
        _show_quarantine(console, db)


def _show_spaces(console: Console, db: Client) -> None:
    table = Table(box=SIMPLE, header_style="bold")
    for name in ("space", "id", "role", "state"):
        table.add_column(name)
    for name in ("refused", "in quarantine"):
        table.add_column(name, justify="right")
    for space in db.spaces():
        title = "[dim]locked[/]" if space.title is None else escape(space.title)
        refused, quarantined = len(db.refused.get(space.id, ())), len(db.quarantine.get(space.id, ()))
        state = "[yellow]locked[/]" if space.locked else "open"
        table.add_row(title, space.id, str(space.role or "none"), state, str(refused), str(quarantined))
    console.print(table)


def _show_refused(console: Console, db: Client) -> None:
    for space, writes in db.refused.items():
        console.print(f"[yellow]refused by the server for good[/], space {space}")
        for write in writes:
            console.print(f"  {write.code}: {escape(write.detail)}")


def _show_quarantine(console: Console, db: Client) -> None:
    for space, envelopes in db.quarantine.items():
        console.print(f"[yellow]in quarantine[/], space {space}; everything else is not affected")
        for envelope in envelopes:
            console.print(f"  entry {envelope.seq}: {escape(str(envelope.reason))}")
