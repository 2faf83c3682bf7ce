"""`twinlock put`, `get`, `query` and `watch`: a profile's documents, for people and shell scripts.

Values go in and out as JSON, one document a line, on the standard output; what is for people goes to standard error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape

from twinlock.cli.conditions import Condition, read_condition
from twinlock.cli.output import fail, from_json, people, run, to_json
from twinlock.errors import OfflineError

if TYPE_CHECKING:
    from twinlock.client.client import Client
    from twinlock.client.query import QueryHandle
    from twinlock.client.writes import Write

CATCH_UP_SECONDS_MAX = 15.0
STORED_SECONDS_MAX = 15.0
"""How long a command waits for the server's word: without a quorum it is welcomed there and hears none."""

ProfileFolder = Annotated[
    Path | None, typer.Option("--profile", "-p", help="The profile folder. [dim]default: that of `twinlock dev`[/]")
]
DocumentPath = Annotated[str, typer.Argument(help="space/collection/document", metavar="PATH", show_default=False)]
CollectionPath = Annotated[str, typer.Argument(help="space/collection", metavar="PATH", show_default=False)]
Offline = Annotated[bool, typer.Option("--offline", help="Answer from this device only, without waiting for a server.")]
Where = Annotated[list[str], typer.Option("--where", "-w", help="A condition such as 'done == false'; repeatable.")]
OrderBy = Annotated[list[str], typer.Option("--order-by", "-o", help="A field; a minus before it reverses.")]
Limit = Annotated[int, typer.Option("--limit", "-n", help="At most so many documents; 0 means all.", min=0)]
Search = Annotated[str, typer.Option("--search", "-s", help="Words that the document's text must have.")]


class Place(NamedTuple):
    """Where a document or a collection is."""

    space: str
    collection: str
    document: str = ""


def put(
    path: DocumentPath,
    value: Annotated[str, typer.Argument(help="The document as JSON.", metavar="JSON", show_default=False)],
    merge: Annotated[bool, typer.Option("--merge", "-m", help="Keep the fields that are not named.")] = False,
    profile: ProfileFolder = None,
    offline: Offline = False,
) -> None:
    """Write a document: [bold]twinlock put home/todos/1 '{"text": "milk"}'[/].

    It is safe on this device at once; the command then waits a while for the server to have it.
    """
    place, data = document_place(path), from_json(value)
    run(_put(place, data, merge, profile, offline))


def get(path: DocumentPath, profile: ProfileFolder = None, offline: Offline = False) -> None:
    """Print a document: [bold]twinlock get home/todos/1[/]. The status is 1 if there is none."""
    run(_get(document_place(path), profile, offline))


def query(
    path: CollectionPath,
    where: Where = [],  # noqa: B006  # typer copies it
    order_by: OrderBy = [],  # noqa: B006
    limit: Limit = 0,
    search: Search = "",
    profile: ProfileFolder = None,
    offline: Offline = False,
) -> None:
    """Print documents, one JSON object a line: [bold]twinlock query home/todos -w 'done == false'[/]."""
    wish = Wish([read_condition(text) for text in where], order_by, limit, search)
    run(_query(collection_place(path), wish, profile, offline))


def watch(
    path: CollectionPath,
    where: Where = [],  # noqa: B006
    limit: Limit = 0,
    count: Annotated[int, typer.Option("--count", help="End after so many changes; 0 means never.", min=0)] = 0,
    profile: ProfileFolder = None,
) -> None:
    """Print what is there, then every change as it arrives, until Ctrl-C."""
    wish = Wish([read_condition(text) for text in where], [], limit, "")
    run(_watch(collection_place(path), wish, count, profile))


class Wish(NamedTuple):
    """What to select."""

    conditions: list[Condition]
    order_by: list[str]
    limit: int
    search: str


def document_place(path: str) -> Place:
    """Split `space/collection/document`; a collection's name may have slashes."""
    parts = path.strip("/").split("/")
    if len(parts) < 3 or not all(parts):
        fail("bad_path", f"{path!r} is not the path of a document.", "Write space/collection/document.", status=2)
    return Place(parts[0], "/".join(parts[1:-1]), parts[-1])


def collection_place(path: str) -> Place:
    """Split `space/collection`."""
    space, _, collection = path.strip("/").partition("/")
    if not space or not collection:
        fail("bad_path", f"{path!r} is not the path of a collection.", "Write space/collection.", status=2)
    return Place(space, collection)


@asynccontextmanager
async def opened(profile: Path | None, offline: bool) -> AsyncIterator[Client]:
    """Open a profile and, unless told otherwise, wait a while for what the server has."""
    import twinlock

    async with await twinlock.connect(profile=profile) as db:
        if not offline:
            await _catch_up(db)
        yield db


async def _catch_up(db: Client) -> None:
    if not db.is_connected:
        error = db.last_error
        reason = "the server does not answer" if error is None or isinstance(error, OfflineError) else str(error)
        people.print(f"[yellow]offline[/]: {escape(reason.rstrip('.'))}; this is what is on the device")
        return
    try:
        async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
            await db.synced()
    except TimeoutError:
        people.print("[yellow]still reading[/] what this device missed; this is what it has so far")


async def _put(place: Place, data: dict[str, object], merge: bool, profile: Path | None, offline: bool) -> None:
    async with opened(profile, offline) as db:
        document = db.space(place.space).collection(place.collection).doc(place.document)
        write = await document.set(data, merge=merge)
        if not db.is_connected or offline:
            people.print("[green]written[/] on this device; the server gets it at the next connection")
        elif await is_stored_soon(write):
            people.print("[green]written[/], the server has it")
        else:
            people.print("[yellow]written[/], safe on this device; the server has not stored it yet")


async def is_stored_soon(write: Write) -> bool:
    """Wait a while until the server has a write on its disk; tell whether it has.

    Raises:
        TwinlockError: the server refused it for good.
    """
    try:
        async with asyncio.timeout(STORED_SECONDS_MAX):
            await write.durable()
    except TimeoutError:
        return False
    return True


async def _get(place: Place, profile: Path | None, offline: bool) -> None:
    async with opened(profile, offline) as db:
        document = db.space(place.space).collection(place.collection).doc(place.document)
        value = await document.get()
    if value is None:
        fail("not_found", "There is no such document.", f"twinlock query {place.space}/{place.collection}")
    print(to_json(value))


async def _query(place: Place, wish: Wish, profile: Path | None, offline: bool) -> None:
    async with opened(profile, offline) as db:
        for document in await _select(db, place, wish).get():
            print(to_json({"id": document.id, **document.data}))


async def _watch(place: Place, wish: Wish, count: int, profile: Path | None) -> None:
    async with opened(profile, offline=False) as db:
        # A silent server and a silent collection look alike, unless it is said.
        unsubscribe = db.on_status(lambda status: people.print(f"[dim]{status}[/]"))
        try:
            await _print_changes(_select(db, place, wish), count)
        finally:
            unsubscribe()


async def _print_changes(selection: QueryHandle[dict[str, Any]], count: int) -> None:
    seen = 0
    async for snap in selection.watch():
        for change in snap.changes:
            line = {"change": change.kind, "id": change.doc.id}
            print(to_json(line if change.kind == "removed" else {**line, "data": change.doc.data}), flush=True)
            seen += 1
            if seen == count:
                return


def _select(db: Client, place: Place, wish: Wish) -> QueryHandle[dict[str, Any]]:
    selection = db.space(place.space).collection(place.collection).query()
    for condition in wish.conditions:
        selection = selection.where(condition.field, condition.operator, condition.value)
    for field in wish.order_by:
        selection = selection.order_by(field.removeprefix("-"), "desc" if field.startswith("-") else "asc")
    if wish.search:
        selection = selection.search(wish.search)
    return selection.limit(wish.limit) if wish.limit else selection
