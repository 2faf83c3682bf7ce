"""`twinlock file`: the files of a space, for people and shell scripts."""

from __future__ import annotations

import asyncio
import datetime
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.markup import escape

from twinlock.cli.documents import Offline, ProfileFolder, is_stored_soon, opened
from twinlock.cli.output import fail, people, run, to_json
from twinlock.cli.spaces import SpaceName

if TYPE_CHECKING:
    from twinlock.client.file_manifests import FileInfo
    from twinlock.client.files import Files

FileId = Annotated[str, typer.Argument(help="A file's id, as `list` shows it.", metavar="ID", show_default=False)]
UPLOAD_SECONDS_MAX = 3600.0
STANDARD = "-"
_UNSAFE = re.compile(r"[^\w. ()+=@,-]")
_ID = re.compile(r"[0-9a-f]{32}")

file = typer.Typer(name="file", help="Put files into a space, and get them out again.", no_args_is_help=True)


@file.command()
def put(
    space: SpaceName,
    path: Annotated[str, typer.Argument(help="The file; - reads the standard input.", metavar="PATH")],
    name: Annotated[str | None, typer.Option("--name", help="What it is called.")] = None,
    type: Annotated[str | None, typer.Option("--type", help="Its media type.")] = None,
    attached: Annotated[
        bool, typer.Option("--attached", help="Delete it by itself once no document has named it for a while.")
    ] = False,
    profile: ProfileFolder = None,
    offline: Offline = False,
) -> None:
    """Put a file into a space, and print its id: [bold]twinlock file put home photo.jpg[/].

    It is safe on this device at once; the command then waits until the server has it.
    """
    run(_put(space, path, (name, type, attached), profile, offline))


@file.command()
def get(
    space: SpaceName,
    id: FileId,
    path: Annotated[
        str | None,
        typer.Argument(help="A file or a folder, by default this one; - writes to the standard output."),
    ] = None,
    profile: ProfileFolder = None,
    offline: Offline = False,
) -> None:
    """Get a file: [bold]twinlock file get home ID photo.jpg[/]. What was interrupted goes on where it ended."""
    _check_id(space, id)
    run(_get(space, id, path, profile, offline))


@file.command("list")
def list_files(space: SpaceName, profile: ProfileFolder = None, offline: Offline = False) -> None:
    """Print the files of a space, one JSON object a line, the oldest first."""
    run(_list(space, profile, offline))


@file.command()
def delete(space: SpaceName, id: FileId, profile: ProfileFolder = None, offline: Offline = False) -> None:
    """Delete a file, everywhere. The server keeps its sealed bytes for its grace."""
    _check_id(space, id)
    run(_delete(space, id, profile, offline))


def _check_id(space: str, id: str) -> None:
    if not _ID.fullmatch(id):
        fail("bad_id", f"{id!r} is not the id of a file.", f"twinlock file list {space}", status=2)


async def _put(
    space: str, path: str, told: tuple[str | None, str | None, bool], profile: Path | None, offline: bool
) -> None:
    name, type, attached = told
    source = sys.stdin.buffer if path == STANDARD else Path(path)
    if path == STANDARD and name is None:
        name = "stdin"
    async with opened(profile, offline) as db:
        files = db.space(space).files
        ref = await files.put(source, name=name, type=type, attached=attached)
        print(ref.id, flush=True)
        if db.is_connected and not offline:
            async with asyncio.timeout(UPLOAD_SECONDS_MAX):
                await files.uploaded(ref)
                await db.synced()
            people.print("[green]put[/], the server has it")
        else:
            people.print("[green]put[/] on this device; the server gets it at the next connection")


async def _get(space: str, id: str, path: str | None, profile: Path | None, offline: bool) -> None:
    async with opened(profile, offline) as db:
        files = db.space(space).files
        if path == STANDARD:
            await _copy(files, id, sys.stdout.buffer)
            return
        info = await files.info(id)
        place = Path(path or ".")
        # Into a folder it goes under its own name, which is somebody else's choice: it replaces nothing there.
        target = place / safe_name(info.name) if await asyncio.to_thread(place.is_dir) else place
        if target != place and target.exists():
            fail("file_exists", f"There is {target} already.", "Say where it goes, as the last argument.")
        await files.save(id, target)
        people.print(f"[green]got[/] {escape(str(target))}, {info.size} bytes")


async def _copy(files: Files, id: str, out: BinaryIO) -> None:
    async for piece in files.stream(id):
        await asyncio.to_thread(out.write, piece)
    out.flush()


async def _list(space: str, profile: Path | None, offline: bool) -> None:
    async with opened(profile, offline) as db:
        for info in await db.space(space).files.list():
            print(to_json(_shown(info)))


async def _delete(space: str, id: str, profile: Path | None, offline: bool) -> None:
    async with opened(profile, offline) as db:
        files = db.space(space).files
        await files.info(id)
        write = await files.delete(id)
        if write is not None and db.is_connected and not offline:
            if not await is_stored_soon(write):
                people.print("[yellow]deleted[/] on this device; the server has not stored that yet")
                return
            await db.synced()
        people.print("[green]deleted[/]")


def _shown(info: FileInfo) -> dict[str, object]:
    added = datetime.datetime.fromtimestamp(info.added_ms / 1000, datetime.UTC)
    shown: dict[str, object] = {
        "id": info.id,
        "name": info.name,
        "type": info.type,
        "size": info.size,
        "added": added.isoformat(timespec="seconds"),
        "state": str(info.state),
    }
    return {**shown, "error": info.error.code} if info.error is not None else shown


def safe_name(name: str) -> str:
    """Return a name for this folder of one that somebody else chose: no path, no hidden file, no option."""
    return _UNSAFE.sub("_", name).lstrip(".-") or "file"
