"""The Python SDK: an open database, its spaces, collections and documents."""

from twinlock.client.batch import WriteBatch
from twinlock.client.client import Client, DeviceInfo
from twinlock.client.collection import Collection, DocumentHandle
from twinlock.client.opening import Options, connect, recover, sign_in, sign_up
from twinlock.client.ordered_list import Element, ListHandle
from twinlock.client.query import QueryHandle
from twinlock.client.snapshots import Doc, DocChange, DocSnapshot, Snapshot
from twinlock.client.space import Space
from twinlock.client.spaces import SpaceInfo
from twinlock.client.status import Status
from twinlock.client.writes import Write

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
    "Options",
    "QueryHandle",
    "Snapshot",
    "Space",
    "SpaceInfo",
    "Status",
    "Write",
    "WriteBatch",
    "connect",
    "recover",
    "sign_in",
    "sign_up",
]
