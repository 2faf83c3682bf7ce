"""Which files the documents of a space still name, looked through a page at a time. Sans-I/O."""

from __future__ import annotations

import re
from typing import Final

from twinlock.document.document import Document
from twinlock.document.file_ref import FILE_ID_ANYWHERE, file_ids_in
from twinlock.replica.store import DocumentKey, ReplicaStore, StoredDocument, decode_value

PAGE_DOCUMENTS: Final = 256
FIRST_DOCUMENT: Final[DocumentKey] = ("", "")
_FILE_ID_BYTES: Final = re.compile(FILE_ID_ANYWHERE.encode())


class FileUse:
    """Looks for some files in all documents, `step` by `step`; `unused` are those that none names when it is done.

    A file is named by a document that is shown, by a conflict's losing value, and by what the server has when this
    device has changed it since: whatever could be seen again keeps its files.
    """

    __slots__ = ("_after", "is_done", "unused")

    def __init__(self, files: frozenset[str]) -> None:
        self.unused = files
        self._after = FIRST_DOCUMENT
        self.is_done = not files

    def step(self, store: ReplicaStore) -> None:
        """Look through the next page."""
        page = store.documents_after(self._after, PAGE_DOCUMENTS)
        for document in page:
            self._look(document)
        self.is_done = len(page) < PAGE_DOCUMENTS or not self.unused
        if page:
            self._after = page[-1].key

    def _look(self, document: StoredDocument) -> None:
        if document.collection.startswith("$"):
            return
        # Most documents name no file at all, which their bytes tell: text stands in them as it is.
        found = {*_FILE_ID_BYTES.findall(document.confirmed), *_FILE_ID_BYTES.findall(document.overlay)}
        if any(id.decode() in self.unused for id in found):
            self.unused -= _named(document)


def _named(document: StoredDocument) -> frozenset[str]:
    values = [] if document.value is None else [decode_value(document.value)]
    for state in (document.confirmed, document.overlay):
        if state:
            known = Document.decode(state)
            values += [known.value() or {}, *(conflict.value for conflict in known.conflicts())]
    return frozenset(id for value in values for id in file_ids_in(value))
