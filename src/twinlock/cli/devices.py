"""`twinlock pair`, `twinlock device` and `twinlock kit`: the devices of a person's account."""

from __future__ import annotations

import datetime
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from twinlock.cli.documents import ProfileFolder, opened
from twinlock.cli.output import people, run, wide_console

if TYPE_CHECKING:
    from twinlock.client.client import Client
    from twinlock.client.devices import DeviceInfo

PASSWORD_VARIABLE = "TWINLOCK_PASSWORD"  # noqa: S105 - the name of a variable
GROUPS_PER_ROW = 4

Address = Annotated[str, typer.Argument(help="The server's address.", metavar="URL", show_default=False)]
Password = Annotated[
    str,
    typer.Option(
        "--password",
        envvar=PASSWORD_VARIABLE,
        # Who cannot be asked, a script say, is told which option is missing.
        prompt="Password" if sys.stdin is not None and sys.stdin.isatty() else False,
        hide_input=True,
        help="What unlocks this device.",
    ),
]
Wanted = Annotated[str, typer.Argument(help="A device's name or id.", metavar="DEVICE", show_default=False)]

device = typer.Typer(name="device", help="List, approve, name and revoke the account's devices.", no_args_is_help=True)
kit = typer.Typer(name="kit", help="Make a new recovery kit.", no_args_is_help=True)


def pair(
    url: Address,
    profile: ProfileFolder = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call this device.")] = None,
    password: Annotated[
        str | None, typer.Option("--password", envvar=PASSWORD_VARIABLE, help="What is to unlock this device.")
    ] = None,
) -> None:
    """Add this device to an account, by the approval of one of its other devices: [bold]twinlock pair wss://…[/].

    It shows a code and a QR code, waits, and then asks you to compare 60 digits.
    """
    run(_pair(url, profile, name, password))


@device.command("list")
def list_devices(profile: ProfileFolder = None) -> None:
    """Show the account's devices, when they were last seen, and which of them are revoked."""
    run(_list(profile))


@device.command()
def approve(
    code: Annotated[str, typer.Argument(help="The code, or the text of the QR code.", show_default=False)],
    password: Password,
    profile: ProfileFolder = None,
) -> None:
    """Add the device that shows this code; then compare the digits on both screens."""
    run(_approve(code, password, profile))


@device.command()
def revoke(
    wanted: Wanted,
    password: Password,
    stolen: Annotated[
        bool, typer.Option("--stolen", help="Somebody may read its disk: replace the account's keys as well.")
    ] = False,
    profile: ProfileFolder = None,
) -> None:
    """Cut a device off, for good. Run it again if it was interrupted."""
    run(_revoke(wanted, password, stolen, profile))


@device.command()
def rename(
    name: Annotated[str, typer.Argument(help="The new name.", show_default=False)],
    wanted: Annotated[str | None, typer.Argument(help="Another device than this one.", metavar="[DEVICE]")] = None,
    profile: ProfileFolder = None,
) -> None:
    """Name this device, or another one of the account."""
    run(_rename(name, wanted, profile))


@kit.command("new")
def new_kit(
    password: Password,
    qr: Annotated[bool, typer.Option("--qr", help="Show it as a QR code as well.")] = False,
    profile: ProfileFolder = None,
) -> None:
    """Make a new recovery kit; the old one opens nothing any more."""
    run(_new_kit(password, qr, profile))


async def _pair(url: str, profile: Path | None, name: str | None, password: str | None) -> None:
    import twinlock
    from twinlock.sealing.vault import check_password

    if password:
        # Now, and not after another device has added this one for nothing.
        check_password(password)
    async with await twinlock.pair_device(url, profile, device_name=name) as request:
        show_qr(request.qr)
        people.print(f"On a device of the account: [bold]twinlock device approve {request.code}[/]")
        people.print("[dim]or db.pair_device(code). The code holds for 10 minutes; waiting…[/]")
        approval = await request.approved()
        people.print(f"\nThe account [bold]{escape(approval.name)}[/] has approved this device. Both screens show:\n")
        show_digits(approval.digits)
        if not typer.confirm("\nDo both screens show the same digits?", err=True):
            people.print("[yellow]rejected[/]; on a device of the account, take back what was added:")
            people.print(f"  twinlock device revoke {request.device}")
            raise typer.Exit(1)
        if password is None:
            password = _ask_password()
        async with await request.confirm(password or None):
            people.print("[green]paired[/]")


def _ask_password() -> str:
    """Ask until the answer is empty or long enough: a pairing that was approved must not end by a slip."""
    from twinlock.errors import PasswordError
    from twinlock.sealing.vault import check_password

    text = "A password to unlock this device (empty: none)"
    while password := str(typer.prompt(text, default="", hide_input=True, show_default=False, err=True)):
        try:
            check_password(password)
        except PasswordError as exc:
            people.print(f"[yellow]{exc.code}[/] {exc.fix}")
        else:
            break
    return password


async def _list(profile: Path | None) -> None:
    async with opened(profile, offline=False) as db:
        found = await db.devices()
    table = Table(box=SIMPLE, header_style="bold")
    for column in ("device", "name", "seen", ""):
        table.add_column(column, no_wrap=True)
    for info in found:
        table.add_row(info.id, escape(_printable(info.name or "")), _seen(info), _state(info))
    wide_console().print(table)


async def _approve(code: str, password: str, profile: Path | None) -> None:
    async with unlocked(profile, password) as db:
        digits = await db.pair_device(code)
    people.print("[green]approved[/]. The new device asks whether both screens show these digits:\n")
    show_digits(digits)


async def _revoke(wanted: str, password: str, stolen: bool, profile: Path | None) -> None:
    async with unlocked(profile, password) as db:
        await db.revoke(wanted, stolen=stolen)
        people.print("[green]revoked[/]: it gets no lease any more, and wipes itself at its next contact")
        if stolen:
            print_kit(db.recovery_kit())


async def _rename(name: str, wanted: str | None, profile: Path | None) -> None:
    async with opened(profile, offline=False) as db:
        await db.rename_device(name, wanted)
    people.print("[green]renamed[/]")


async def _new_kit(password: str, qr: bool, profile: Path | None) -> None:
    async with unlocked(profile, password) as db:
        text = await db.new_recovery_kit()
        print_kit(text)
        if qr:
            show_qr(db.kit_qr(text))


@asynccontextmanager
async def unlocked(profile: Path | None, password: str) -> AsyncIterator[Client]:
    """Open a profile, connected, for changes of devices and keys."""
    async with opened(profile, offline=False) as db:
        await db.unlock(password)
        yield db


def show_qr(text: str) -> None:
    """Print a QR code, where the package that draws it is installed."""
    if find_spec("segno") is None:
        people.print("[dim]A QR code could stand here: pip install 'twinlock[cli]'[/]")
        return
    import segno

    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out=drawn, compact=True)
    people.file.write(drawn.getvalue())


def show_digits(digits: str) -> None:
    """Print 60 digits in rows that are easily compared; they go to the standard output."""
    groups = digits.split(" ")
    for start in range(0, len(groups), GROUPS_PER_ROW):
        print("  " + "  ".join(groups[start : start + GROUPS_PER_ROW]))


def print_kit(text: str, *, replaces: bool = True) -> None:
    """Print a recovery kit, once."""
    which = "new recovery kit, shown once; the old one opens nothing any more" if replaces else "recovery kit, once"
    people.print(f"The {which}. Write it down:\n")
    print(f"  {text}\n")


def _seen(info: DeviceInfo) -> str:
    if info.online:
        return "now"
    if not info.last_seen_ms:
        return "never"
    seen = datetime.datetime.fromtimestamp(info.last_seen_ms / 1000, tz=datetime.UTC)
    return f"{seen.astimezone():%Y-%m-%d %H:%M}"


def _state(info: DeviceInfo) -> str:
    if info.revoked:
        return "[red]revoked[/]"
    return "[green]this one[/]" if info.this else ""


def _printable(name: str) -> str:
    """Take out of a name what a terminal would act on."""
    return "".join(letter for letter in name if letter.isprintable())
