"""Twinlock: real-time sync of data that its server cannot read.

async with await twinlock.connect() as db:
    todos = db.space("home").collection("todos")
    await todos.add({"text": "buy milk", "done": False})
"""

from twinlock.client import (
    Client,
    Collection,
    DeviceInfo,
    Doc,
    DocChange,
    DocSnapshot,
    DocumentHandle,
    Element,
    ListHandle,
    Options,
    QueryHandle,
    Snapshot,
    Space,
    SpaceInfo,
    Status,
    Write,
    WriteBatch,
    connect,
    recover,
    sign_in,
    sign_up,
)
from twinlock.document.fields import array_remove, array_union, delete_field, increment, server_timestamp
from twinlock.document.schema import Migration, Schema
from twinlock.errors import TwinlockError

__all__ = [
    "Client",
    "Collection",
    "DeviceInfo",
    "Doc",
    "DocChange",
    "DocSnapshot",
    "DocumentHandle",
    "Element",
    "ListHandle",
    "Migration",
    "Options",
    "QueryHandle",
    "Schema",
    "Snapshot",
    "Space",
    "SpaceInfo",
    "Status",
    "TwinlockError",
    "Write",
    "WriteBatch",
    "array_remove",
    "array_union",
    "connect",
    "delete_field",
    "increment",
    "recover",
    "server_timestamp",
    "sign_in",
    "sign_up",
]
