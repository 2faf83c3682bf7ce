"""What a thief does with files: takes every value out of them and tries each 32 bytes in a row as the missing key."""

import base64
import binascii
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

KEY_BYTES = 32
VALUE_BYTES_MAX = 8192


def pieces(value: object) -> Iterator[bytes]:
    """Yield every string of bytes in a value, also what is coded inside: MessagePack, JSON, base64, hex."""
    match value:
        case bytes():
            yield value
            yield from inside(value)
        case str():
            yield from pieces(value.encode())
        case dict():
            for name, inner in value.items():
                yield from pieces(name)
                yield from pieces(inner)
        case list() | tuple():
            for inner in value:
                yield from pieces(inner)


def inside(data: bytes) -> Iterator[bytes]:
    """Yield what a string of bytes holds if it is itself a coding of something."""
    for decode in (msgspec.msgpack.decode, msgspec.json.decode):
        try:
            content = decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if isinstance(content, dict | list):
            yield from pieces(content)
    for decode_text in (base64.urlsafe_b64decode, base64.b64decode, binascii.unhexlify):
        try:
            yield decode_text(data + b"=" * (-len(data) % 4) if decode_text is not binascii.unhexlify else data)
        except (binascii.Error, ValueError):
            continue


def stored(folder: Path) -> set[bytes]:
    """Return everything that lies in a folder: whole small files, and every value of every database."""
    found: set[bytes] = set()
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        found.update(pieces(path.read_bytes()[:VALUE_BYTES_MAX]))
        if path.suffix == ".db":
            found.update(database_values(path))
    return found


def database_values(path: Path) -> Iterator[bytes]:
    """Yield every value of a SQLite file; of one that is sealed, nothing."""
    connection = sqlite3.connect(path)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f"SELECT * FROM {table}"):
                yield from pieces(list(row))
    except sqlite3.DatabaseError:
        return
    finally:
        connection.close()


def windows(values: set[bytes]) -> set[bytes]:
    """Return every 32 bytes in a row of some values."""
    return {
        value[at : at + KEY_BYTES] for value in values for at in range(min(len(value), VALUE_BYTES_MAX) - KEY_BYTES + 1)
    }
