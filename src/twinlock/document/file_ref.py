"""How a document names a file of its space. See spec/documents.md, section 11."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from twinlock.document.values import Value
from twinlock.errors import InvalidDataError

FILES_COLLECTION: Final = "$files"
"""The reserved collection of the manifests; a manifest's id is that of its file."""

FILE_KEY: Final = "$file"
FILE_ID: Final = re.compile(r"[0-9a-f]{32}")
FILE_ID_ANYWHERE: Final = r"(?=([0-9a-f]{32}))"
"""Finds ids also where they begin within one another: what may be an id counts as one."""

_ANYWHERE = re.compile(FILE_ID_ANYWHERE)


class FileRef(dict[str, Any]):
    """A file, as a value: the object `{"$file": id}`, which is also what is read back. Raises InvalidDataError."""

    __slots__ = ()

    def __init__(self, id: str) -> None:
        super().__init__({FILE_KEY: check_file_id(id)})

    @property
    def id(self) -> str:
        """The file's id: 32 hex digits."""
        return str(self[FILE_KEY])

    @classmethod
    def of(cls, value: Mapping[str, Any] | str) -> FileRef:
        """Return the file that a value of a document names, or an id.

        Raises:
            InvalidDataError: it names none.
        """
        return cls(value if isinstance(value, str) else value.get(FILE_KEY, ""))


def check_file_id(id: object) -> str:
    """Return a file's id.

    Raises:
        InvalidDataError: it is none.
    """
    if not isinstance(id, str) or not FILE_ID.fullmatch(id):
        raise InvalidDataError("a file's id has 32 hex digits")
    return id


def file_ids_in(value: Value) -> Iterator[str]:
    """Yield every file id that stands in a value, at any depth: as a reference, or as a text of its own."""
    if isinstance(value, str):
        yield from _ANYWHERE.findall(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _ANYWHERE.findall(key)
            yield from file_ids_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from file_ids_in(item)
