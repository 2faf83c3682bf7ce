"""`twinlock cluster mirror` and `promote`: copy a cluster to a second site, and go on from there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from twinlock.cli.cluster_authority import AUTHORITY_NAME
from twinlock.cli.cluster_keys import ADMIN_SEED_NAME
from twinlock.cli.output import fail, need_server_parts, people, run, wide_console
from twinlock.errors import RevisionError

if TYPE_CHECKING:
    from twinlock.engines.jetstream import JetstreamEngine
    from twinlock.engines.jetstream_mirror import MirrorStatus, Promotion, SecondSite
    from twinlock.engines.jetstream_options import NatsOptions

PROMOTED_KEY = "cluster/promoted"
STILL_SECONDS = 1.0
"""How long the first site must have stored nothing, before a planned move takes it for stopped."""

Url = Annotated[str, typer.Argument(help="The second site: tls://HOST:PORT,HOST:PORT,HOST:PORT.", metavar="URL")]
Operator = Annotated[
    Path | None,
    typer.Option(
        help="The folder `operator` that `twinlock cluster keys` made; not needed for servers without keys.",
        exists=True,
        file_okay=False,
    ),
]


class Promoted(msgspec.Struct, frozen=True):
    """What the directory keeps of a promotion: when it was, whose copies these were, where each stream ended."""

    at_ms: int
    first: str
    streams: dict[str, int]


def mirror(
    url: Url,
    operator: Operator = None,
    first: Annotated[str | None, typer.Option(help="Copy this site, by its name: set up what is missing.")] = None,
    behind_max: Annotated[int | None, typer.Option(help="Exit status 1 if a copy lacks more messages.")] = None,
) -> None:
    """Copy all streams of a first site to this one, and show how far each copy is behind.

    With [bold]--first[/] it sets up what is not copied yet: do so again after partitions were opened. Servers of the
    second site know the first one by [bold]twinlock cluster link[/].
    """
    need_server_parts()
    statuses = run(_mirror(url, operator, first))
    console = wide_console()
    for status in statuses:
        behind = "unknown" if status.behind is None else f"{status.behind} behind"
        silent = "never heard" if status.silent_s is None else f"heard {status.silent_s:.1f} s ago"
        console.print(f"{status.stream:<20} {status.last_seq:>12}  {behind:<14} {silent}")
    if not statuses:
        fail("no_copies", "This site copies no other one.", "Name the first site with --first.")
    if behind_max is not None and any(status.behind is None or status.behind > behind_max for status in statuses):
        raise typer.Exit(1)


async def _mirror(url: str, operator: Path | None, first: str | None) -> list[MirrorStatus]:
    async with second_site(admins_options(url, operator), first or "") as site:
        if first:
            made = await site.set_up()
            people.print(f"{len(made)} streams are copied anew")
        return await site.status()


def promote(
    url: Url,
    operator: Operator = None,
    planned: Annotated[
        bool, typer.Option(help="The first site is there, and its servers are stopped: move without losing anything.")
    ] = False,
) -> None:
    """Let the second site serve by itself: make its copies writable, and begin a new life of the store.

    The first site must be gone, or its [bold]twinlock serve[/] stopped for good ([bold]--planned[/]). What had not been
    copied is given again by the devices. Afterwards start the servers of this site.
    """
    need_server_parts()
    promoted = run(_promote(url, operator, planned))
    for stream, last_seq in promoted.streams.items():
        wide_console().print(f"{stream:<20} goes on after {last_seq}")
    people.print("this site can be written: start its servers. Wipe the first site before it is ever started again")


async def _promote(url: str, operator: Path | None, is_planned: bool) -> Promoted:
    return await promote_site(admins_options(url, operator), is_planned=is_planned)


async def promote_site(options: NatsOptions, *, is_planned: bool) -> Promoted:
    """Promote the copies of a cluster, end what a lost tail left half, and begin a new life of the store.

    May be called again after it was interrupted.

    Raises:
        StoreError: there are no copies, or the cluster does not answer.
    """
    async with second_site(options, "") as site:
        first = await site.first_site()
        if first:
            await _check_first(site, is_planned)
        promotion = await site.promote()
    return await _begin_anew(options, first, promotion)


async def _check_first(site: SecondSite, is_planned: bool) -> None:
    """End the command where two sites would serve, or a planned move would lose something."""
    if not is_planned:
        if await site.is_first_alive():
            fix = "Stop its servers, wait until no copy is behind (`twinlock cluster mirror`), then say --planned."
            fail("first_site_alive", "The first site still answers: both would serve.", fix)
        return
    before = await site.status()
    await asyncio.sleep(STILL_SECONDS)
    after = await site.status()
    if any(status.behind != 0 for status in after):
        fix = "Wait until no copy is behind. If the first site is lost, leave out --planned."
        fail("copies_behind", "Not everything is copied, or the first site cannot be seen.", fix)
    if [one.last_seq for one in before] != [one.last_seq for one in after]:
        fail("first_site_serves", "The first site still stores changes.", "Stop its `twinlock serve` first.")


async def _begin_anew(options: NatsOptions, first: str, promotion: Promotion) -> Promoted:
    from twinlock.engines.jetstream import JetstreamEngine
    from twinlock.ids import Incarnation

    engine = await JetstreamEngine.connect("", options)
    try:
        record = await engine.directory.get(PROMOTED_KEY)
        if record is not None:
            known = msgspec.msgpack.decode(record.value, type=Promoted)
            if known.at_ms == promotion.at_ms:
                return known
        await _take_back_cuts(engine)
        await engine.replace_incarnation(Incarnation(os.urandom(16)))
        promoted = Promoted(promotion.at_ms, first, promotion.streams)
        try:
            # Written last: until then the promotion is not ended, and calling it again ends it.
            value = msgspec.msgpack.encode(promoted)
            await engine.directory.put(PROMOTED_KEY, value, record.revision if record else 0)
        except RevisionError:
            fail("promoted_twice", "Somebody else promotes this site.", "Look whether it serves before going on.")
        return promoted
    finally:
        await engine.close()


async def _take_back_cuts(engine: JetstreamEngine) -> None:
    """Take back cuts of spaces whose snapshots lie in the tail that was lost: nothing would be delivered at all.

    A cut is marked until what it covers is deleted, which is days later than any copy may be behind.
    """
    from twinlock.ids import Seq, SpaceId

    for key in await engine.directory.list("cuts/"):
        space = SpaceId(bytes.fromhex(key.rpartition("/")[2]))
        state = await engine.log.state(space)
        if state.start > state.head + 1:
            await engine.log.uncut(space, Seq(0))


def admins_options(url: str, operator: Path | None) -> NatsOptions:
    """Return how to reach a cluster as its admin, who alone may make and change streams.

    Raises:
        StoreError: `url` is no address of a cluster.
    """
    from twinlock.engines.jetstream_options import NatsOptions

    if operator is None:
        return NatsOptions.from_url(url)
    authority = str(operator / AUTHORITY_NAME) if url.startswith("tls://") else ""
    return NatsOptions.from_url(url, ca_file=authority, nkey_file=str(operator / ADMIN_SEED_NAME))


@asynccontextmanager
async def second_site(options: NatsOptions, first: str) -> AsyncIterator[SecondSite]:
    """Hold a connection to a second site.

    Raises:
        StoreError: no server can be reached, or they refuse us.
    """
    from twinlock.cli.doctor_cluster import connected
    from twinlock.engines.jetstream_api import Api
    from twinlock.engines.jetstream_format import Names
    from twinlock.engines.jetstream_mirror import SecondSite

    async with connected(options) as connection:
        yield SecondSite(Api(connection), Names(), first)
