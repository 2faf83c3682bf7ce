"""What every command shares: how it prints, how it fails, how it reads a path and a value."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import os
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from twinlock.errors import TwinlockError

Result = TypeVar("Result")
SERVER_PACKAGES = ("uvicorn", "litestar", "uvloop", "prometheus_client", "structlog", "shamir_mnemonic")

PLAIN_WIDTH = 140

# Results go to the standard output, plain, for programs; everything else is for people and goes to standard error.
people = Console(stderr=True, highlight=False, soft_wrap=True)


def wide_console() -> Console:
    """Return a console for results in columns; where no terminal sets its width it is wide enough for ids."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=PLAIN_WIDTH)


def fail(code: str, text: str, fix: str = "", status: int = 1) -> NoReturn:
    """Print an error as code, sentence and remedy, and end the command."""
    people.print(f"[bold red]{escape(code)}[/] {escape(text)}")
    if fix:
        people.print(f"  [dim]→[/] {escape(fix)}")
    raise typer.Exit(status)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Turn an error that has a code, or is of a file or folder, into its print-out and exit status 1."""
    try:
        yield
    except TwinlockError as exc:
        detail = f" ({exc.detail})" if exc.detail else ""
        fail(exc.code, f"{type(exc).__doc__}{detail}", exc.fix)
    except BrokenPipeError:
        # Who read the output, `head` say, has enough: nothing is amiss. What Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as exc:
        if exc.filename is None:
            raise
        fix = "Name another file or folder, or see that it may be read and written, and that there is room."
        fail("file_failed", f"{exc.filename}: {exc.strerror}.", fix)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's work to its end; Ctrl-C ends it quietly."""
    try:
        with errors_shown():
            return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def need_server_parts() -> None:
    """End the command with what to install if a server cannot run here."""
    missing = [name for name in SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        text = f"Running a server needs packages that are not installed: {', '.join(missing)}."
        fail("server_parts_missing", text, "pip install 'twinlock[server]'", status=2)


def to_json(value: object, indent: int | None = None) -> str:
    """Return a document's value as JSON; what JSON lacks is written as an object with one `$` key."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)


def from_json(text: str) -> dict[str, Any]:
    """Read a document's value from JSON, the reverse of `to_json`; ends the command if it is not an object."""
    try:
        value = json.loads(text, object_hook=_rich)
    except ValueError as exc:
        fail("not_json", f"The value is not JSON: {exc}", """Quote it for the shell: '{"text": "milk"}'""", status=2)
    if not isinstance(value, dict):
        fail("not_an_object", "A document is a JSON object.", """For example: '{"text": "milk"}'""", status=2)
    return value


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return {"$time": value.isoformat()}
    if isinstance(value, msgspec.msgpack.Ext):
        # A type of a newer SDK: shown, so that the rest of its document can be read.
        return {"$ext": value.code, "data": base64.b64encode(value.data).decode()}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _rich(value: dict[str, Any]) -> Any:
    match value:
        case {"$bytes": str(text)} if len(value) == 1:
            return base64.b64decode(text, validate=True)
        case {"$time": str(text)} if len(value) == 1:
            return datetime.datetime.fromisoformat(text)
    return value
