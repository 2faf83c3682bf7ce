"""`twinlock migrate`: move a server's data to another engine while its devices go on writing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.output import need_server_parts, people, run
from twinlock.cli.server_data import place_of

if TYPE_CHECKING:
    from twinlock.backup import EnginePlace, Moved

StopPids = Annotated[
    list[int] | None,
    typer.Option("--stop", help="A server's process on this machine, which is asked to end when it is time."),
]

FromConfig = Annotated[
    Path | None, typer.Option(help="Settings of the old server: where its files are.", exists=True, dir_okay=False)
]
ToConfig = Annotated[
    Path | None,
    typer.Option(help="Settings of the new one: where its files go, how it reaches NATS.", exists=True, dir_okay=False),
]


def migrate(
    source: Annotated[str, typer.Option("--from", help="sqlite:FOLDER, or nats://host:port,…")],
    to: Annotated[str, typer.Option(help="An empty engine: sqlite:FOLDER, or nats://host:port,…")],
    stop: StopPids = None,
    from_config: FromConfig = None,
    to_config: ToConfig = None,
    wait_s: Annotated[float, typer.Option(help="How long to wait for the servers to end.")] = 600.0,
) -> None:
    """Move all of a server's data into another engine; devices write on until the last seconds.

    It copies in rounds beside the live server. When little is left it asks you to stop the server, or stops it itself
    ([bold]--stop PID[/]), copies the rest, compares everything, and marks the source: it is never served again by
    mistake. Then start the new one at the old address, with the same [bold]server.key[/].
    """
    need_server_parts()
    begin, end = place_of(source, from_config), place_of(to, to_config)
    moved = run(_migrate(begin, end, stop or [], wait_s))
    found = moved.verified
    print(f"moved in {len(moved.rounds)} rounds; nobody was served for {moved.cutover_ms / 1000:.1f} s, until now")
    print(
        f"  compared: {found.spaces_count} spaces, {found.entries_count} entries, {found.records_count} records,"
        f" {found.blobs_count} parts of files"
    )
    people.print(f"Start the new server now: engine {end.shown}, the same address, the same server.key.")


async def _migrate(source: EnginePlace, target: EnginePlace, pids: list[int], wait_s: float) -> Moved:
    from twinlock.backup import Steps, terminate
    from twinlock.backup import migrate as move
    from twinlock.server.app import wall_clock_ms

    async def stop() -> None:
        for pid in pids:
            await asyncio.to_thread(terminate, pid)
        if not pids:
            people.print(f"[bold]Stop what serves {source.shown} now.[/] The rest goes by itself.")

    return await move(source, target, Steps(people.print, stop, wait_s), wall_clock_ms)
