"""`twinlock service`: accounts of programs, whose keys lie in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinlock.cli.output import people, run

service = typer.Typer(name="service", help="Make accounts for workers, gateways and sensors.", no_args_is_help=True)


@service.callback()
def _group() -> None:
    """Have the group keep its name in front of its one command."""


@service.command()
def create(
    url: Annotated[str, typer.Argument(help="The server's address.", metavar="URL", show_default=False)],
    name: Annotated[str, typer.Argument(help="The account's name.", show_default=False)],
    key_file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.", show_default=False)],
) -> None:
    """Make an account for a program: [bold]twinlock service create wss://… worker worker.key[/].

    Whoever has the file is the account. Programs open it with [bold]twinlock.connect(key_file=…)[/].
    """
    run(_create(url, name, key_file))


async def _create(url: str, name: str, key_file: Path) -> None:
    import twinlock

    made = await twinlock.create_service_account(url, name, key_file)
    people.print(f"[green]made[/] the account {made.name} ({made.id}); invite it to the spaces that it is to serve")
    print(made.key_file)
