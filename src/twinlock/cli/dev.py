"""`twinlock dev`: a server with everything set up for trying and developing, on this machine only."""

from __future__ import annotations

import asyncio
import errno
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from twinlock.cli.output import fail, need_server_parts, run

if TYPE_CHECKING:
    from twinlock.server.app import Server

DEFAULT_PORT = 8765
ACCOUNT = "demo"
# Known to all, and therefore only for a server that nobody but this machine's user can reach. It signs in and permits
# changes of devices and spaces; it opens no data.
PASSWORD = "twinlock-dev"  # noqa: S105


def dev(
    port: Annotated[int, typer.Option(help="The port to listen on.")] = DEFAULT_PORT,
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


async def _dev(port: int, folder: Path | None) -> None:
    from twinlock.client.profile import data_folder, default_profile
    from twinlock.server.app import Server
    from twinlock.server.settings import Settings

    place = folder or data_folder() / "dev"
    profile = place / "profile" if folder else default_profile()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    server = Server(Settings(data=str(place / "server"), port=port, log_level="warning"))
    await _start(server, port)
    try:
        kit = await _sign_up(server.url, profile)
        _greet(Console(highlight=False), server.url, profile, kit, is_default=folder is None)
        await _ended()
    finally:
        await server.stop()


async def _start(server: Server, port: int) -> None:
    try:
        await server.start()
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        fix = "It may be another `twinlock dev`: use that one, or give --port and --folder."
        fail("port_in_use", f"Port {port} is in use.", fix)


async def _sign_up(url: str, profile: Path) -> str:
    """Make the demo account at the first start and return its recovery kit; later there is none to show."""
    import twinlock
    from twinlock.client.profile import VAULT_FILE_NAME
    from twinlock.errors import NameTakenError

    if (profile / VAULT_FILE_NAME).exists():
        return ""
    for number in range(1, 100):
        name = ACCOUNT if number == 1 else f"{ACCOUNT}-{number}"
        try:
            db = await twinlock.sign_up(url, name, PASSWORD, profile=profile)
        except NameTakenError:
            # The profile was deleted and the server kept: nobody has that account's keys any more.
            continue
        async with db:
            return db.recovery_kit()
    fail("name_taken", "A hundred demo accounts exist already.", "Delete the server's folder to begin anew.")


def _greet(console: Console, url: str, profile: Path, kit: str, is_default: bool) -> None:
    console.print(f"[bold cyan]Twinlock[/] is listening on [bold]{url}[/], for this machine only")
    console.print(f"  profile   {escape(str(profile))}")
    console.print(f"  account   {ACCOUNT}, password {PASSWORD}  [dim](for development only)[/]")
    if kit:
        console.print(f"  recovery  [bold]{kit}[/]  [dim]shown once: it adds another device to this account[/]")
    option = "" if is_default else f" --profile {profile}"
    steps = (
        f"""twinlock put home/todos/1 '{{"text": "buy milk", "done": false}}'{option}""",
        f"twinlock query home/todos{option}",
        "",
        "or in Python:  async with await twinlock.connect() as db: ...",
        "One profile is open in one process at a time.",
    )
    console.print(Panel("\n".join(map(escape, steps)), title="Next", title_align="left", expand=False))
    console.print("[dim]Ctrl-C ends it; the data stays.[/]")


async def _ended() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
