"""`twinlock restore` and `twinlock restored`: bring a server's data back, and say that another tool has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from twinlock.cli.output import errors_shown, fail, need_server_parts, people, run
from twinlock.cli.serve import ConfigFile
from twinlock.cli.server_data import Endpoint, Generation, place_of

if TYPE_CHECKING:
    from twinlock.backup import EnginePlace, Manifest, Restored


def restore(
    source: Annotated[str, typer.Argument(help="The folder or bucket of a backup.")],
    to: Annotated[str, typer.Option(help="An empty engine: sqlite:FOLDER, or nats://host:port,…")],
    config: ConfigFile = None,
    generation: Generation = None,
    endpoint: Endpoint = "",
    even_damaged: Annotated[
        bool, typer.Option("--even-damaged", help="Bring back what can be, and name what cannot.")
    ] = False,
) -> None:
    """Bring a backup back into an empty engine, and check every hash and every chain on the way.

    Settings ([bold]--config[/]) say where the files go and how a cluster is reached. The engine gets a new incarnation:
    devices read everything again, and bring back what they know and the backup lacks.
    """
    need_server_parts()
    place = place_of(to, config)
    manifest, restored, identity = run(_restore(source, endpoint, generation, place, even_damaged))
    if identity and not place.is_cluster:
        with errors_shown():
            _write_identity(place.folder, identity)
    print(
        f"generation {manifest.generation}: {restored.spaces_count} spaces, {restored.entries_count} entries,"
        f" {restored.records_count} records, {restored.blobs_count} parts of files"
    )
    for problem in restored.problems:
        people.print(f"[bold red]lost[/] {escape(problem)}")
    if not place.is_cluster and not (place.folder / "server.key").exists():
        people.print(f"[yellow]Put server.key into {place.folder} before you start it:[/] without, no device takes it.")
    people.print("Bring back the key service apart, if it was lost too: twinlock keyservice restore.")
    raise typer.Exit(1 if restored.problems else 0)


def restored(
    data: Annotated[Path, typer.Argument(help="The data folder of a server that is stopped.", file_okay=False)],
) -> None:
    """Say that a data folder's database was set back, by Litestream or a snapshot of the disk: before it is started.

    It gets a new incarnation. Without that, devices would take what comes anew for what they have already.
    """
    need_server_parts()
    with errors_shown():
        from twinlock.backup.places import DATABASE_NAME
        from twinlock.engines.sqlite import begin_new_life

        incarnation = begin_new_life(data / DATABASE_NAME)
    print(f"incarnation {incarnation.hex()}")
    if not (data / "server.key").exists():
        people.print(f"[yellow]Put server.key into {data} before you start it:[/] without, no device takes it.")


async def _restore(
    source: str, endpoint: str, generation: int | None, place: EnginePlace, even_damaged: bool
) -> tuple[Manifest, Restored, bytes]:
    from twinlock.backup import open_backup, open_writing, read_generation
    from twinlock.backup import restore as restore_backup
    from twinlock.backup.chunks import Chunks
    from twinlock.server.app import wall_clock_ms

    async with open_backup(source, endpoint) as store:
        manifest, _ = await read_generation(store, generation)
        async with open_writing(place) as into:
            done = await restore_backup(manifest, store, into, wall_clock_ms, place=source, even_damaged=even_damaged)
        identity = await Chunks(store).get(bytes.fromhex(manifest.identity)) if manifest.identity else b""
    return manifest, done, identity


def _write_identity(folder: Path, identity: bytes) -> None:
    path = folder / "server.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        if path.read_bytes() != identity:
            fail("file_failed", f"{path} is another server's.", "Remove it, if the backup's is the one you want.")
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(identity)
        file.flush()
        os.fsync(file.fileno())
