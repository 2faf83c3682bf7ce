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
    PairingApproval,
    PairingRequest,
    QueryHandle,
    ServiceAccount,
    Snapshot,
    Space,
    SpaceInfo,
    Status,
    Write,
    WriteBatch,
    connect,
    create_service_account,
    pair_device,
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
    "PairingApproval",
    "PairingRequest",
    "QueryHandle",
    "Schema",
    "ServiceAccount",
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
    "create_service_account",
    "delete_field",
    "increment",
    "pair_device",
    "recover",
    "server_timestamp",
    "sign_in",
    "sign_up",
]
