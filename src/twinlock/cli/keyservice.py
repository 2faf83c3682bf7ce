"""`twinlock keyservice`: run the key service as a process of its own, introduce it to servers, rotate its root key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.output import errors_shown, fail, need_server_parts

if TYPE_CHECKING:
    from twinlock.keyservice.settings import ProcessSettings

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A TOML file with settings of the key service.", exists=True, dir_okay=False),
]
DataFolder = Annotated[str | None, typer.Option("--data", help="The folder of the key service's files.")]

keyservice = typer.Typer(
    name="keyservice",
    help="Run the key service as a process of its own, and look after it.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)


@keyservice.callback()
def serve(
    context: typer.Context,
    config: ConfigFile = None,
    data: DataFolder = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.")] = None,
) -> None:
    """Run the key service as a process of its own.

    Settings come from the file, then from [bold]TWINLOCK_KEYSERVICE_*[/] of the environment, then from these options.
    It answers the servers whose keys its setting [bold]nodes[/] lists, and ends in good order on SIGINT and SIGTERM.
    """
    if context.invoked_subcommand is not None:
        return
    need_server_parts()
    with settings_shown(), errors_shown():
        from twinlock.keyservice.app import run

        run(read_key_settings(config, data=data, host=host, port=port).check())


@keyservice.command("public-key")
def public_key(config: ConfigFile = None, data: DataFolder = None) -> None:
    """Print the key service's public key, for [bold]keyservice_pk[/] of each server; it is made at the first use."""
    with settings_shown(), errors_shown():
        from twinlock.keyservice.key_files import SERVICE_KEY_NAME, open_signing_key, public_key_text

        settings = read_key_settings(config, data=data)
        print(public_key_text(open_signing_key(Path(settings.data) / SERVICE_KEY_NAME)))


@keyservice.command("node-key")
def node_key(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A TOML file with settings of the server.", exists=True, dir_okay=False),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The folder of the server's files.")] = None,
) -> None:
    """Print a server's public key, for [bold]nodes[/] of the key service; run it where the server runs."""
    from twinlock.cli.serve import read_settings

    with errors_shown():
        from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text

        settings = read_settings(config, data=data)
        print(public_key_text(open_signing_key(Path(settings.data) / NODE_KEY_NAME)))


@keyservice.command("rotate-root")
def rotate_root(config: ConfigFile = None, data: DataFolder = None) -> None:
    """Make a new version of the root key now and wrap every key under it; the key service must be stopped.

    A running one does so by itself, every [bold]root_rotation_days[/].
    """
    with settings_shown(), errors_shown():
        settings = read_key_settings(config, data=data)
        check_key_folder(settings)
        count = asyncio.run(_rotate(settings))
        print(f"{count} keys are wrapped under a new version of the root key")


async def _rotate(settings: ProcessSettings) -> int:
    from twinlock.keyservice.service import LocalKeyService

    keys = LocalKeyService.open(settings.data, settings.custody)
    try:
        return await keys.rotate_root_key()
    finally:
        await keys.close()


def read_key_settings(config: Path | None, **overrides: object) -> ProcessSettings:
    """Read the settings of a key service; not yet checked for running it."""
    from twinlock.keyservice.settings import load_process_settings

    return load_process_settings(config, os.environ, **overrides)


def check_key_folder(settings: ProcessSettings) -> None:
    """End the command if there is no key service, nor a backup of one, where the settings say."""
    from twinlock.keyservice.service import DATABASE_NAME

    if not (Path(settings.data) / DATABASE_NAME).exists():
        fix = "Name its folder with --data; within a server's folder it is `keyservice`."
        fail("no_key_service", f"There is no key service in {settings.data}.", fix)


@contextmanager
def settings_shown() -> Iterator[None]:
    """Turn settings that cannot be into their print-out and exit status 2."""
    from twinlock.process.settings_file import SettingsError

    try:
        yield
    except SettingsError as exc:
        fail("settings", str(exc), "See `twinlock keyservice --help`.", status=2)
