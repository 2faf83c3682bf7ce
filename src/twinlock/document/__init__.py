"""The data model: operations, merging, queries, snapshots. Pure."""

from twinlock.document.conflicts import Conflict
from twinlock.document.document import Document
from twinlock.document.fields import array_remove, array_union, delete_field, increment, server_timestamp
from twinlock.document.operations import Change, Edit, decode_change, encode_change
from twinlock.document.query import Query
from twinlock.document.schema import Loaded, Migration, Schema

__all__ = [
    "Change",
    "Conflict",
    "Document",
    "Edit",
    "Loaded",
    "Migration",
    "Query",
    "Schema",
    "array_remove",
    "array_union",
    "decode_change",
    "delete_field",
    "encode_change",
    "increment",
    "server_timestamp",
]
