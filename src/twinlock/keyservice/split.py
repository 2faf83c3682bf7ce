"""Splitting the backup of a root key: a key pair whose private half goes onto sheets and is then forgotten."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.errors import StoreError
from twinlock.keyservice.root_backup import SplitKey
from twinlock.keyservice.sheets import Sheet, make_sheets
from twinlock.keyservice.wrapper_file import FileKeyWrapper


class PreparedSplit:
    """Sheets that do not count yet: they do once they have been printed and `adopt` is done."""

    __slots__ = ("_split", "_wrapper", "sheets")

    def __init__(self, wrapper: FileKeyWrapper, split: SplitKey, sheets: list[Sheet]) -> None:
        self._wrapper = wrapper
        self._split = split
        self.sheets = sheets

    def adopt(self) -> list[int]:
        """Seal every version of the root key, from now on each new one too, and return those that exist.

        Raises:
            StoreError: the root key file or the backup cannot be written; the sheets are of no use then.
        """
        self._wrapper.back_up_to(self._split)
        return self._wrapper.versions


def prepare_split(
    wrapper: FileKeyWrapper, keyservice_id: bytes, sheets_count: int, needed_count: int, *, again: bool = False
) -> PreparedSplit:
    """Make a backup key pair and its sheets; `again` is needed where earlier sheets become useless by it.

    Raises:
        SheetError: there are no such numbers of sheets.
        StoreError: the root key was split before.
    """
    if wrapper.split is not None and not again:
        raise StoreError(
            f"the root key was split before, into set {wrapper.split.set_id}: a new set makes those sheets useless for "
            "later backups (--again)"
        )
    private = X25519PrivateKey.generate()
    sheets = make_sheets(private.private_bytes_raw(), sheets_count, needed_count)
    public = private.public_key().public_bytes_raw()
    return PreparedSplit(wrapper, SplitKey(public, keyservice_id, sheets[0].set_id, sheets_count, needed_count), sheets)
