"""`twinlock cluster init`, `status`, `open-partitions` and `close-partitions`: where the spaces of a cluster lie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from twinlock.cli.cluster_mirror import Operator, admins_options
from twinlock.cli.output import fail, need_server_parts, people, run, wide_console

if TYPE_CHECKING:
    from twinlock.engines.jetstream import JetstreamEngine
    from twinlock.engines.jetstream_cluster import ClusterSettings, ClusterStatus, FirstSettings, StreamStatus
    from twinlock.engines.jetstream_options import NatsOptions

Url = Annotated[
    str, typer.Argument(help="The cluster: nats://HOST:PORT,HOST:PORT or tls://….", metavar="URL", show_default=False)
]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", help="Only on NATS servers with this tag; may be given several times.", show_default=False),
]
Numbers = Annotated[
    str, typer.Argument(help="One partition, or a range: 16 or 16-31.", metavar="PARTITIONS", show_default=False)
]


def init(
    url: Url,
    partitions: Annotated[int, typer.Option(help="How many partitions to begin with.", min=1, max=512)] = 16,
    shards: Annotated[
        int, typer.Option(help="Streams of the directory; they never change, so think of the largest size.", min=1)
    ] = 4,
    replicas: Annotated[int, typer.Option(help="Copies of everything; 0: 3, or 1 on a single server.", min=0)] = 0,
    operator: Operator = None,
) -> None:
    """Make a cluster on NATS servers that have none; the first sync node does it by itself otherwise.

    One shard of the directory is meant for 4 million records, about 400,000 spaces: see docs/operate/capacity.md.
    """
    need_server_parts()
    run(_init(url, operator, partitions, shards, replicas))


def status(url: Url, operator: Operator = None) -> None:
    """Show partitions, copies and leaders; the exit status is 1 if a stream could not lose another machine.

    It changes nothing.
    """
    need_server_parts()
    if not run(_status(url, operator)):
        raise typer.Exit(1)


def open_partitions(
    url: Url,
    numbers: Annotated[
        str | None,
        typer.Argument(help="One partition, or a range: 16 or 16-31.", metavar="[PARTITIONS]", show_default=False),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", help="So many new ones, after those that exist.", min=1)
    ] = None,
    tag: Tags = None,
    operator: Operator = None,
) -> None:
    """Make partitions and open them for new spaces, or open such as were closed.

    New ones go to NATS servers that have all the tags ([bold]server_tags[/] of their configuration), or to any.
    Spaces that exist stay where they are.
    """
    need_server_parts()
    if (numbers is None) == (count is None):
        fail("partitions_missing", "Which partitions?", "Give their numbers, such as 16-31, or --count 16.", status=2)
    run(_open(url, operator, numbers, count or 0, tag or []))


def close_partitions(url: Url, numbers: Numbers, operator: Operator = None) -> None:
    """Give partitions no new spaces. The spaces that are in them stay, and are served on."""
    need_server_parts()
    run(_close(url, operator, numbers))


async def _init(url: str, operator: Path | None, partitions: int, shards: int, replicas: int) -> None:
    from twinlock.engines.jetstream_cluster import FirstSettings
    from twinlock.engines.jetstream_room import STREAMS_MAX

    if partitions + shards > STREAMS_MAX:
        text = f"{partitions + shards} streams are more than one NATS cluster carries ({STREAMS_MAX})."
        fail("too_many_streams", text, "Take fewer partitions or shards; partitions can be opened later.", status=2)
    options = admins_options(url, operator)
    if await _exists(options):
        text = "There is a cluster on these NATS servers already."
        fail("cluster_exists", text, "See `twinlock cluster status`; its shards cannot be changed.")
    async with _engine(options, FirstSettings(partitions, shards, replicas)) as engine:
        people.print(_summary(engine.settings))


async def _status(url: str, operator: Path | None) -> bool:
    options = admins_options(url, operator)
    await _need_cluster(options)
    async with _engine(options) as engine:
        found = await engine.status()
    _show(found)
    return found.is_healthy


async def _open(url: str, operator: Path | None, numbers: str | None, count: int, tags: list[str]) -> None:
    from twinlock.engines.jetstream_room import SPACES_MAX, check_streams, next_partition
    from twinlock.errors import InvalidCallError

    options = admins_options(url, operator)
    await _need_cluster(options)
    async with _engine(options) as engine:
        settings = await engine.refresh_settings()
        first, many = _range(numbers) if numbers is not None else (next_partition(settings), count)
        try:
            check_streams(settings, first, many)
        except InvalidCallError as exc:
            fix = "Close full partitions and keep them; beyond this many, divide the people among several clusters."
            fail("too_many_streams", f"The cluster would have {exc.detail}.", fix)
        held = [number for number in settings.partitions if first <= number < first + many]
        full = [number for number, spaces in (await engine.spaces_in(held)).items() if spaces >= SPACES_MAX]
        if full:
            text = f"{_named(full)} would take no new spaces: {SPACES_MAX:,} spaces are there, the most of a partition."
            fail("partition_full", text, "Open others.")
        people.print(_summary(await engine.open_partitions(first, many, tuple(tags))))


async def _close(url: str, operator: Path | None, numbers: str) -> None:
    options = admins_options(url, operator)
    await _need_cluster(options)
    first, many = _range(numbers)
    async with _engine(options) as engine:
        settings = await engine.refresh_settings()
        closing = {*range(first, first + many)}
        if unknown := closing - {*settings.partitions}:
            text = f"There is no partition {_named(sorted(unknown))}: {_named(settings.partitions)} are there."
            fail("partition_missing", text, "See `twinlock cluster status`.")
        if closing >= {*settings.open}:
            text = "One partition must stay open for new spaces."
            fail("partitions_all_closed", text, "Open others first: `twinlock cluster open-partitions`.")
        people.print(_summary(await engine.close_partitions(first, many)))


@asynccontextmanager
async def _engine(options: NatsOptions, first: FirstSettings | None = None) -> AsyncIterator[JetstreamEngine]:
    from twinlock.engines.jetstream import JetstreamEngine

    engine = await JetstreamEngine.connect("", options, first=first)
    try:
        yield engine
    finally:
        await engine.close()


async def _exists(options: NatsOptions) -> bool:
    """Tell whether the servers have a cluster of Twinlock's; nothing is made by asking."""
    from twinlock.engines.jetstream_api import NO_STREAM, Api, ApiError
    from twinlock.engines.jetstream_connection import Connection
    from twinlock.engines.jetstream_format import Names

    connection = Connection(options)
    await connection.open()
    try:
        if not connection.server.get("jetstream"):
            text = "The NATS server that answered runs without JetStream."
            fail("no_jetstream", text, "Add a `jetstream { sync_interval: always … }` block: deploy/nats/server.conf.")
        await Api(connection).call(f"STREAM.INFO.{Names().directory_stream(0)}", {})
    except ApiError as error:
        if error.failure.err_code != NO_STREAM:
            raise
        return False
    finally:
        await connection.close()
    return True


async def _need_cluster(options: NatsOptions) -> None:
    if not await _exists(options):
        text = "There is no cluster of Twinlock's on these NATS servers."
        fail("no_cluster", text, "Make it with `twinlock cluster init`, or start a sync node.")


def _range(numbers: str) -> tuple[int, int]:
    """Return the first and how many."""
    first, dash, last = numbers.partition("-")
    try:
        begin, end = int(first), int(last) if dash else int(first)
    except ValueError:
        begin, end = 0, -1
    if not 0 <= begin <= end:
        fail("partitions_malformed", f"{numbers!r} names no partitions.", "Such as 16 or 16-31.", status=2)
    return begin, end - begin + 1


def _summary(settings: ClusterSettings) -> str:
    closed = sorted({*settings.partitions} - {*settings.open})
    rest = f"; closed: {_named(closed)}" if closed else ""
    return (
        f"{len(settings.partitions)} partitions, open for new spaces: {_named(settings.open)}{rest}; "
        f"{settings.shards} shards of the directory, {settings.replicas} copies of everything"
    )


def _named(numbers: list[int]) -> str:
    """Return numbers with their runs joined: 0-15, 20."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs) or "none"


# The table of `status`


def _show(found: ClusterStatus) -> None:
    from twinlock.engines.jetstream_room import RECORDS_PLANNED, SPACES_MAX, SPACES_PLANNED, partition_streams

    console = wide_console()
    console.print(_summary(found.settings))
    sync = {
        True: "sync_interval: always",
        False: "[bold red]sync_interval is not always[/]",
        None: "sync_interval is not visible from here",
    }
    console.print(
        f"NATS {escape(found.server_version)}, asked {escape(found.server)}; disk: {sync[found.syncs_always]}"
    )
    table = Table(box=SIMPLE, header_style="dim")
    for column in ("stream", "for", "leader", "copies", "spaces or records", "MiB", "tags"):
        table.add_column(column)
    for stream in found.streams[: found.settings.shards]:
        table.add_row(*_row(stream, "directory", RECORDS_PLANNED))
    for partition, stream in partition_streams(found).items():
        what = "open" if partition in found.settings.open else "closed"
        table.add_row(*_row(stream, "full" if stream.subjects >= SPACES_MAX else what, SPACES_PLANNED))
    console.print(table)
    if not found.is_healthy:
        people.print("[bold red]not healthy[/] A stream has no leader, or a copy that is missing or behind.")


def _row(stream: StreamStatus, what: str, planned: int) -> tuple[str, ...]:
    current = 1 + sum(each.is_current and not each.is_offline for each in stream.replicas)
    copies = f"{current if stream.leader else 0} of {1 + len(stream.replicas)}"
    return (
        stream.name,
        what,
        escape(stream.leader) or ("[bold red]nobody[/]" if stream.replicas else "-"),
        copies if current > len(stream.replicas) else f"[yellow]{copies}[/]",
        f"{stream.subjects:,}" if stream.subjects <= planned else f"[yellow]{stream.subjects:,}[/]",
        f"{stream.bytes / (1 << 20):,.1f}",
        escape(", ".join(stream.tags)),
    )
