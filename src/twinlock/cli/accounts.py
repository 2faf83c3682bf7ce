"""`twinlock sign-up` and `twinlock recover`: an account of one's own, and one's account on a new device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from twinlock.cli.devices import PASSWORD_VARIABLE, Address, print_kit
from twinlock.cli.documents import ProfileFolder
from twinlock.cli.output import people, run

KIT_VARIABLE = "TWINLOCK_KIT"

AccountName = Annotated[str, typer.Argument(help="The account's name.", metavar="NAME", show_default=False)]
NewPassword = Annotated[
    str,
    typer.Option(
        "--password",
        envvar=PASSWORD_VARIABLE,
        prompt="A password, of at least 8 characters",
        confirmation_prompt=True,
        hide_input=True,
        help="Signs in, and unlocks this device.",
    ),
]
Kit = Annotated[
    str,
    typer.Option(
        "--kit", envvar=KIT_VARIABLE, prompt="The recovery kit", help="Its 28 letters, or the text of its QR code."
    ),
]


def sign_up(url: Address, name: AccountName, password: NewPassword, profile: ProfileFolder = None) -> None:
    """Make an account, with this device and a space named home: [bold]twinlock sign-up wss://… ann[/].

    The recovery kit goes to the standard output, once: without it and without a device nobody opens the account's data.
    """
    run(_sign_up(url, name, password, profile))


def recover(
    url: Address,
    name: AccountName,
    kit: Kit,
    password: Annotated[
        str | None,
        typer.Option(
            "--password",
            envvar=PASSWORD_VARIABLE,
            help="Replaces the account's password, and unlocks this device. [dim]default: neither[/]",
        ),
    ] = None,
    profile: ProfileFolder = None,
) -> None:
    """Add this device to an account by the recovery kit: [bold]twinlock recover wss://… ann[/]."""
    run(_recover(url, name, kit, password, profile))


async def _sign_up(url: str, name: str, password: str, profile: Path | None) -> None:
    import twinlock

    async with await twinlock.sign_up(url, name, password, profile=profile) as db:
        people.print(f"[green]signed up[/] as {escape(name)}")
        print_kit(db.recovery_kit(), replaces=False)


async def _recover(url: str, name: str, kit: str, password: str | None, profile: Path | None) -> None:
    import twinlock

    async with await twinlock.recover(url, name, kit, password, profile=profile):
        people.print(f"[green]recovered[/]: this is a device of {escape(name)} now")
