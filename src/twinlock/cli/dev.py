"""`twinlock dev`: a server with everything set up for trying and developing, on this machine only."""

from __future__ import annotations

import asyncio
import errno
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from twinlock.cli.output import fail, need_server_parts, run

if TYPE_CHECKING:
    from twinlock.server.app import Server

DEFAULT_PORT = 8765
PORT_FILE_NAME = "port"
ACCOUNT = "demo"
ACCOUNTS_MAX = 100
# Known to all, and therefore only for a server that nobody but this machine's user can reach. It signs in and permits
# changes of devices and spaces; it opens no data.
PASSWORD = "twinlock-dev"  # noqa: S105


def dev(
    port: Annotated[
        int | None,
        typer.Option(help="The port to listen on. [dim]default: that of the first start, 8765[/]", min=1, max=65_535),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to keep server and profile. [dim]default: this user's application data[/]"),
    ] = None,
) -> None:
    """Start a server for development: nothing to configure, reachable from this machine only.

    The first start signs up a demo account and makes a profile that [bold]twinlock.connect()[/] finds by itself.
    """
    need_server_parts()
    run(_dev(port, folder))


async def _dev(wanted_port: int | None, folder: Path | None) -> None:
    from twinlock.client.profile import data_folder, default_profile
    from twinlock.process import configure_logs
    from twinlock.server.app import Server
    from twinlock.server.settings import Settings

    place = folder or data_folder() / "dev"
    profile = place / "profile" if folder else default_profile()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)  # before anything else runs
    configure_logs("warning")
    port = _port_of(place, wanted_port)
    server = Server(Settings(data=str(place / "server"), port=port, log_level="warning"))
    await _start(server, port)
    (place / PORT_FILE_NAME).write_text(str(port), encoding="ascii")
    try:
        made = await _sign_up(server.url, profile)
        _greet(Console(highlight=False, soft_wrap=True), server.url, profile, made, is_default=folder is None)
        await _ended()
    finally:
        await server.stop()


def _port_of(place: Path, wanted: int | None) -> int:
    """Return the port of the first start, which is the one that the profiles dial ever after."""
    file = place / PORT_FILE_NAME
    if not file.exists():
        return wanted or DEFAULT_PORT
    port = int(file.read_text(encoding="ascii"))
    if wanted not in (None, port):
        fail("port_taken", f"The profiles made here dial port {port}.", "Leave out --port, or give --folder too.")
    return port


async def _start(server: Server, port: int) -> None:
    from twinlock.process import SettingsError

    try:
        await server.start()
    except SettingsError as exc:
        if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE:
            fix = "It may be another `twinlock dev`: use that one, or give --port and --folder."
            fail("port_in_use", f"Port {port} is in use.", fix)
        fail("settings", str(exc))


class Made(NamedTuple):
    """What the first start made: an account, and the kit that is shown once."""

    name: str
    kit: str


async def _sign_up(url: str, profile: Path) -> Made | None:
    """Make the demo account with two devices at the first start; later there is nothing to make."""
    import twinlock
    from twinlock.client.profile import VAULT_FILE_NAME
    from twinlock.errors import NameTakenError

    if (profile / VAULT_FILE_NAME).exists():
        return None
    for number in range(1, ACCOUNTS_MAX):
        name = ACCOUNT if number == 1 else f"{ACCOUNT}-{number}"
        try:
            async with await twinlock.sign_up(url, name, PASSWORD, profile=profile) as db:
                kit = db.recovery_kit()
        except NameTakenError:
            # The profile was deleted and the server kept: nobody has that account's keys any more.
            continue
        second = second_profile(profile)
        if not (second / VAULT_FILE_NAME).exists():
            # Of two devices with the same name neither could be named.
            options = twinlock.Options(device_name="second")
            async with await twinlock.recover(url, name, kit, profile=second, options=options):
                pass
        return Made(name, kit)
    fail("name_taken", "There are many demo accounts already.", "Delete the server's folder to begin anew.")


def second_profile(profile: Path) -> Path:
    """Return where the demo account's second device is: a profile is open in one process at a time."""
    return profile.with_name(f"{profile.name}-2")


def _greet(console: Console, url: str, profile: Path, made: Made | None, is_default: bool) -> None:
    console.print(f"[bold cyan]Twinlock[/] is listening on [bold]{url}[/], for this machine only")
    console.print(f"  profile   {escape(str(profile))}")
    console.print(f"  second    {escape(str(second_profile(profile)))}  [dim]another device of the same account[/]")
    if made:
        console.print(f"  account   {made.name}, password {PASSWORD}  [dim](for development only)[/]")
        console.print(f"  recovery  [bold]{made.kit}[/]  [dim]shown once: it adds another device[/]")
    option = "" if is_default else f" --profile {profile}"
    command = _this_command()
    console.print("\nNext, in two other terminals:")
    console.print(escape(f"  {command} watch home/todos --profile {second_profile(profile)}"))
    console.print(escape(f"""  {command} put home/todos/1 '{{"text": "buy milk", "done": false}}'{option}"""))
    console.print("\nor in Python: [bold]async with await twinlock.connect() as db: ...[/]")
    console.print("[dim]Ctrl-C ends it; the data stays.[/]")


def _this_command() -> str:
    """Return what to type for another command: in a checkout that of its .venv, which no shell finds by its name."""
    if shutil.which("twinlock"):
        return "twinlock"
    return sys.argv[0] if Path(sys.argv[0]).name == "twinlock" else f"{sys.executable} -m twinlock"


async def _ended() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
