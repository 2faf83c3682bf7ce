"""`twinlock serve`: run a server with settings from a file and the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.output import errors_shown, fail, need_server_parts

if TYPE_CHECKING:
    from twinlock.server.settings import Settings

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="A TOML file with settings.", exists=True, dir_okay=False)
]
DataFolder = Annotated[str | None, typer.Option("--data", help="The folder of the server's files.")]


def read_settings(config: Path | None, **overrides: object) -> Settings:
    """Read the settings; ends the command with what is wrong with them."""
    from twinlock.process import SettingsError
    from twinlock.server.settings import load_settings

    try:
        return load_settings(config, os.environ, **overrides)
    except SettingsError as exc:
        fail("settings", str(exc), "See `twinlock serve --help`.", status=2)


def serve(
    config: ConfigFile = None,
    data: DataFolder = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Where to store: sqlite, or the NATS servers of a cluster: nats://HOST:PORT,HOST:PORT."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.")] = None,
) -> None:
    """Run a server, with its key service in the same process unless [bold]keyservice_url[/] names another.

    Settings come from the file, then from [bold]TWINLOCK_*[/] of the environment, then from these options.
    It ends in good order on SIGINT and SIGTERM.
    """
    need_server_parts()
    settings = read_settings(config, data=data, engine=engine, host=host, port=port)
    from twinlock.process import SettingsError
    from twinlock.server.app import run

    try:
        with errors_shown():
            run(settings)
    except SettingsError as exc:
        fail("settings", str(exc))
