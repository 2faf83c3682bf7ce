"""What the commands for backups and moves of a server's data share: how places are named and sizes told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.output import fail
from twinlock.cli.serve import read_settings

if TYPE_CHECKING:
    from twinlock.backup import EnginePlace

Endpoint = Annotated[
    str, typer.Option("--endpoint", help="The address of the backup's bucket, where it is not Amazon's.")
]
Generation = Annotated[
    int | None, typer.Option("--generation", help="Which generation of the backup. [dim]default: the newest[/]")
]


def place_of(url: str | None, config: Path | None, data: str | None = None) -> EnginePlace:
    """Return where an engine and its files are; ends the command if nothing says so.

    Args:
        url: `sqlite:FOLDER` or `nats://…`; the engine of the settings if it is None.
        config: settings of the server: where its files are, and how it reaches a cluster.
        data: the data folder in place of that of the settings.
    """
    from twinlock.backup import EnginePlace
    from twinlock.server.settings import SQLITE_ENGINE

    settings = read_settings(config, data=data)
    if url is None and settings.in_memory:
        fail("engine", "A server in memory has nothing to back up.", "Name an engine that keeps what it is given.")
    if url is None:
        url = f"sqlite:{settings.data}" if settings.engine == SQLITE_ENGINE else settings.engine
    place = EnginePlace(
        url,
        settings.blobs,
        settings.blobs_endpoint,
        settings.nats_ca_file,
        settings.nats_certificate,
        settings.nats_key,
        settings.nats_nkey_file,
        settings.nats_creds_file,
    )
    if not place.is_cluster and not url.startswith("sqlite:"):
        fail("place", f"{url} names no engine.", "Write sqlite:FOLDER, or nats://host:port,host:port.", status=2)
    return place


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
