"""What an application asks to write: intents, before they meet the document's state and become operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec


class SetDocument(msgspec.Struct, frozen=True):
    """Replace a document, or with `merge` lay the given fields over it."""

    collection: str
    id: str
    data: Mapping[str, Any]
    merge: bool = False


class UpdateDocument(msgspec.Struct, frozen=True):
    """Change single fields, named by dotted paths, of a document that exists."""

    collection: str
    id: str
    changes: Mapping[str | tuple[str, ...], Any]


class DeleteDocument(msgspec.Struct, frozen=True):
    """Delete a document; deleting what is not there is fine."""

    collection: str
    id: str


class ListAction(StrEnum):
    """What happens to one element of an ordered list."""

    INSERT = "insert"
    SET = "set"
    MOVE = "move"
    REMOVE = "remove"


class EditList(msgspec.Struct, frozen=True):
    """Change one element of an ordered list; which arguments count depends on the action."""

    collection: str
    id: str
    path: str | tuple[str, ...]
    action: ListAction
    element: str
    index: int = 0
    value: Any = None


Intent = SetDocument | UpdateDocument | DeleteDocument | EditList
Batch = Sequence[Intent]
"""Intents that become one atomic change."""
