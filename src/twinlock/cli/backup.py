"""`twinlock backup`: copy what a server holds to another place, while it serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.output import fail, need_server_parts, people, run
from twinlock.cli.serve import ConfigFile, DataFolder
from twinlock.cli.server_data import Endpoint, place_of, size

if TYPE_CHECKING:
    from twinlock.backup import EnginePlace, Made

Engine = Annotated[
    str | None, typer.Option("--engine", help="sqlite:FOLDER or nats://host:port,… in place of that of the settings.")
]


def backup(
    target: Annotated[str, typer.Argument(help="A folder, or s3://bucket/prefix. One that has backups gets the next.")],
    config: ConfigFile = None,
    data: DataFolder = None,
    engine: Engine = None,
    endpoint: Endpoint = "",
    keep: Annotated[int, typer.Option(help="How many generations stay, this one included; 0 for all.", min=0)] = 0,
    with_identity: Annotated[
        bool, typer.Option("--with-identity", help="Put server.key into it as well: whoever has it can pose as you.")
    ] = False,
) -> None:
    """Back up log, directory and files of a server that goes on serving; only what is new is written.

    The key service is not in it: see [bold]twinlock keyservice backup[/]. Nor is [bold]server.key[/], unless you say
    so: keep a copy of it elsewhere, devices take no server without it.
    """
    need_server_parts()
    place = place_of(engine, config, data)
    identity = _read_identity(config, data) if with_identity else b""
    made = run(_back_up(place, target, endpoint, keep, identity))
    manifest, counts = made.manifest, made.manifest.counts
    print(f"generation {manifest.generation}: {size(manifest.written_bytes)} written")
    print(f"  {counts.spaces} spaces, {counts.entries} entries, {size(counts.envelope_bytes)}")
    print(f"  {counts.records} records, {counts.blobs} parts of files, {size(counts.blob_bytes)}")
    if made.pruned_count:
        print(f"  {made.pruned_count} old generations deleted")
    if not manifest.identity:
        people.print("[dim]server.key and the key service are not in it: keep copies of both elsewhere.[/]")


async def _back_up(place: EnginePlace, target: str, endpoint: str, keep: int, identity: bytes) -> Made:
    from twinlock.backup import make_backup, open_backup, open_reading
    from twinlock.server.app import wall_clock_ms

    async with open_reading(place) as holdings, open_backup(target, endpoint, is_made=True) as store:
        return await make_backup(holdings, store, wall_clock_ms, identity=identity, keep=keep)


def _read_identity(config: Path | None, data: str | None) -> bytes:
    from twinlock.cli.serve import read_settings
    from twinlock.server.secrets_file import FILE_NAME

    file = Path(read_settings(config, data=data).data) / FILE_NAME
    try:
        return file.read_bytes()
    except OSError as exc:
        fail("file_failed", f"{file}: {exc.strerror}.", "Name the server's data folder with --data.")
